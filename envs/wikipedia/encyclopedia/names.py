"""Words for the names in the bundled encyclopedia. Invented, and few enough to be learnt."""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


MEN = _words(
    """
    Adam Albert Alden Amos Anton Arlo Basil Bruno Caleb Casper Cedric Clive Conrad Cyril
    Damon Desmond Dorian Edgar Edmund Elias Emil Ernest Felix Fergus Gideon Gilbert Gregor
    Harvey Hector Henrik Horace Hugo Ignaz Ivor Jasper Jonas Julian Karl Lambert Leo Leopold
    Linus Lorenz Lucas Magnus Marcus Martin Matthias Milo Nestor Nico Norbert Oliver Oscar
    Oswin Otto Pascal Percy Philip Quentin Ralph Rufus Rupert Samson Sebald Silas Simon
    Stefan Tobias Ulric Valentin Victor Vincent Walter Wendel Wilfred Xaver Yorick Zeno
    """
)
WOMEN = _words(
    """
    Ada Agatha Agnes Alma Amelia Anna Astrid Beatrix Bertha Bianca Bridget Camilla Cecily
    Celeste Clara Cora Cordula Daphne Delia Dora Edith Elena Elsa Emma Erika Esther Eva
    Fanny Flora Frida Gemma Gerda Greta Hanna Hazel Hedwig Helga Hester Ida Imogen Ingrid
    Irene Isolde Ivy Jessica Johanna Judith Juna Karin Klara Lavinia Lea Lena Lilian Lotte
    Louisa Lydia Mabel Magda Marta Mathilda Mina Miriam Nadia Nora Olga Ottilie Paula Petra
    Phoebe Regina Rosa Ruth Sabina Selma Sophia Thea Ursula Vera Wanda Wilma Zelda
    """
)
FAMILIES = _words(
    """
    Abel Alder Amberg Anders Arkwright Ashby Bader Balfour Barlow Baxter Beck Bellamy Berger
    Birch Blackwood Bloom Bolton Brand Brenner Briar Brooks Calder Carver Castell Chandler
    Clay Cole Conway Corbett Crane Cross Dahl Dalton Darrow Delaney Denham Dorn Drake
    Dunmore Eckhart Egan Elwood Emery Engel Everett Fabian Falk Farrow Fenner Finch Fisk
    Fletcher Foster Frost Gale Garland Garnet Gerber Gladwin Glover Grant Graves Grove Haas
    Hadley Hale Halloran Hamm Hardwick Harlow Hartmann Hawke Heller Hobart Holm Holt Horn
    Hoyle Hume Ingram Ivers Jansen Jarvis Joyner Kander Keller Kemp Kerr Kessler Kirsch
    Klein Knox Kramer Lachlan Lamont Landau Lang Larkin Lasker Lennox Lindqvist Lockhart
    Loring Lowell Lund Mallory Marlow Marsh Maddox Mercer Merrick Milner Monk Moreau Morrow
    Munro Nash Neville Nolan North Norwood Oakes Ogilvy Olsen Orme Osgood Paget Palmer Parr
    Pascoe Penrose Perrin Pike Platt Pole Prior Quill Quinn Radley Ramsay Rasmus Redfern
    Reeve Renard Rhodes Ridley Rigby Ritter Roper Rowe Ruskin Sachs Salter Sands Saxon
    Seaton Severin Shaw Sinclair Sloane Sommer Sparrow Stark Stein Storm Stroud Swann Talbot
    Tanner Tarrant Teller Thorne Tiller Torrance Tully Tyrell Underhill Unger Vance Varga
    Vaughn Vernon Voss Wade Walden Ward Warwick Webber Weir Wendt Whitlock Wilder Winter
    Wolfe Wren Yardley York Zander Zeller
    """
)
TOWN_HEADS = _words(
    """
    Alder Amber Ash Bar Beck Birch Black Bram Bright Cald Carl Clear Cold Corn Dar Deep Dun
    East Elm Fair Fal Farn Glen Gold Grim Hal Har Hazel High Holt Iron Kel Kings Lang Lin
    Long Mar Mel Mill Moor New Nor Oak Old Pen Quin Raven Red Ros Sal Sand Sil Stan Stone
    Sum Thorn Tor Val Ver Wald West White Wind Wolf
    """
)
TOWN_TAILS = _words(
    """
    bridge brook burg burn bury by dale field ford gate ham haven ley mere mouth port stead
    ton wick worth
    """
)
COUNTRIES = {
    # Country: (its people, language, currency)
    "Aldoria": ("Aldorian", "Aldor", "aldor crown"),
    "Belmark": ("Belmarkian", "Belmark", "bel"),
    "Corvania": ("Corvanian", "Corvan", "corvan mark"),
    "Drevland": ("Drevish", "Drevish", "drev"),
    "Esteria": ("Esterian", "Ester", "ester pound"),
    "Fenmoria": ("Fenmorian", "Fenmor", "silver fen"),
    "Galdria": ("Galdrian", "Galdric", "gald"),
    "Hestonia": ("Hestonian", "Heston", "heston franc"),
    "Ilvaria": ("Ilvarian", "Ilvar", "ilva"),
    "Jorvania": ("Jorvanian", "Jorvan", "jorvan dollar"),
    "Kelmar": ("Kelmarian", "Kelmar", "kelm"),
    "Lothria": ("Lothrian", "Lothric", "loth shilling"),
}
REGION_HEADS = _words(
    """
    Upper Lower Northern Southern Eastern Western Central Outer
    """
)
REGION_NAMES = _words(
    """
    Arden Brask Callow Dorrin Elster Fargo Gorm Hallin Istra Jarrow Karst Lorne
    """
)
RIVERS = _words(
    """
    Aller Anse Arl Bourne Brede Caan Clun Dart Dene Eder Elde Esk Fal Fara Gade Glan Hamble
    Ilse Isen Jagst Kenn Lahn Leck Lune Meda Nadder Nethe Oker Orla Pang Rhee Rother Sark
    Sorn Tamar Tove Ure Vils Wenn Yar
    """
)
ADJECTIVES = _words(
    """
    Amber Ancient Bitter Blue Borrowed Bright Broken Burning Crimson Crooked Distant Empty
    Endless Fading Fallen First Forgotten Frozen Gentle Glass Golden Green Grey Hidden
    Hollow Iron Last Little Lonely Lost Midnight Narrow Northern Painted Pale Paper Patient
    Quiet Restless Scarlet Second Secret Silent Silver Sleeping Stolen Strange Velvet
    Wandering White Wild Winter Wooden
    """
)
NOUNS = _words(
    """
    Anchor Archer Autumn Bell Bridge Candle Castle Circle Clock Cloud Compass Crown Dancer
    Door Dream Engine Falcon Feather Ferry Fire Forest Garden Ghost Harbour Harvest Heart
    Horizon Hour House Island Journey Key King Lantern Letter Lighthouse Machine Map Mask
    Mirror Moon Mountain Night Ocean Orchard Palace Piano Promise Queen River Road Rose
    Sailor Season Shadow Shore Song Spring Star Station Storm Stranger Summer Thief Tower
    Train Valley Village Voice Wall Window
    """
)
OCCUPATIONS = (
    # (occupation, how many of 100 people have it)
    ("film director", 14),
    ("actor", 13),
    ("composer", 10),
    ("novelist", 15),
    ("singer", 12),
    ("entrepreneur", 13),
    ("architect", 7),
    ("cyclist", 5),
    ("swimmer", 5),
    ("painter", 3),
    ("botanist", 3),
)
COMPANIES = {
    # kind: (endings of the name, how many)
    "film studio": (("Pictures", "Studios", "Films"), 34),
    "publishing house": (("Press", "Books", "Publishing"), 34),
    "record label": (("Records", "Music", "Sound"), 34),
    "shipping company": (("Lines", "Shipping"), 20),
    "car maker": (("Motors", "Automobiles"), 20),
    "brewery": (("Brewery", "Brewing"), 24),
}
LANDMARKS = ("Museum", "Bridge", "Opera House", "Library", "Tower", "Theatre")
CONTESTS = {
    # contest: what its winner is
    "Cycling Cup": "cyclist",
    "Grand Tour": "cyclist",
    "Swimming Gala": "swimmer",
    "Channel Race": "swimmer",
    "Song Festival": "singer",
    "Book Fair": "novelist",
    "Film Festival": "film director",
}
GENRES = {
    "film": "drama,comedy,thriller,western,romance,adventure",
    "novel": "historical,detective,romance,adventure,science fiction,family",
    "album": "folk,jazz,pop,rock,blues,soul",
}
MONTHS = _words(
    """
    January February March April May June July August September October November December
    """
)
