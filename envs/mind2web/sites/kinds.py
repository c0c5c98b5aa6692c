"""Six kinds of bundled websites: booking, shop, search, settings, calendar, support."""

from __future__ import annotations

import numpy as np

from stepagent.envs.mind2web.sites.base import Fields, Move, Site, SiteGoal, SiteState, pick
from stepagent.envs.mind2web.sites.pages import button, form, link, slug

_NAMES = ("Mara", "Ivo", "Lena", "Tariq", "Noor", "Jonas", "Pia", "Ruben", "Selma", "Otto")
_FAMILIES = ("Lind", "Okoye", "Ferrari", "Novak", "Haas", "Moreau", "Silva", "Berg", "Kato")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_TIMES = ("09:00", "10:30", "13:00", "15:30")


class Booking(Site):
    """Pick what, for how many and when; say who; send."""

    kind = "booking"

    def nav(self) -> list[tuple[str, str, str]]:
        return [("n-book", "/book", self.theme["page"])]

    def main(self, path: str, query: Fields, state: SiteState) -> tuple[str, str] | None:
        theme, skin = self.theme, self.skin
        if path == "/":
            text = f"<p>Welcome to {self.brand}. See what is free this week.</p>"
            return self.brand, text + link("offer", "/info/offer", "Offer of the week")
        if path == "/book":
            fields = [
                skin.select("item", theme["page"], theme["items"]),
                skin.select("count", theme["count"], ["1", "2", "3"]),
                skin.select("day", theme["day"], _DAYS[:4]),
                skin.text("who", "Your name"),
            ]
            return theme["page"], form("/book", *fields, button("send", theme["verb"]))
        return self._thanks(state) if path == "/done" else None

    def submit(self, path: str, fields: Fields, state: SiteState) -> str:
        if path != "/book":
            return super().submit(path, fields, state)
        state["done"] = {key: fields.get(key, "") for key in ("item", "count", "day", "who")}
        return "/done"

    def goal(self, rng: np.random.Generator) -> SiteGoal:
        theme = self.theme
        item, count = pick(rng, theme["items"][1:]), pick(rng, ("2", "3"))
        day, who = pick(rng, _DAYS[1:4]), f"{pick(rng, _NAMES)} {pick(rng, _FAMILIES)}"
        words = (theme["verb"], item, theme["count"].lower(), count, day, who)
        text = pick(
            rng,
            (
                "{0} {1} for {3} {2} on {4}, name {5}",
                "{0} under the name {5}: {1}, {4}, {3} {2}",
            ),
        ).format(*words)
        moves = (
            Move("CLICK", "n-book"),
            Move("SELECT", "item", item),
            Move("SELECT", "count", count),
            Move("SELECT", "day", day),
            Move("TYPE", "who", who),
            Move("CLICK", "send"),
        )
        return SiteGoal(text, moves, {"item": item, "count": count, "day": day, "who": who})


class Shop(Site):
    """Find a product in its group, choose how it should be, put it into the cart."""

    kind = "shop"

    def nav(self) -> list[tuple[str, str, str]]:
        return [(f"g-{slug(group)}", f"/g/{slug(group)}", group) for group in self.theme["groups"]]

    def main(self, path: str, query: Fields, state: SiteState) -> tuple[str, str] | None:
        theme = self.theme
        if path == "/":
            return self.brand, link("offer", "/info/offer", "Offer of the week")
        for group, products in theme["groups"].items():
            if path == f"/g/{slug(group)}":
                links = [link(f"p-{slug(p)}", f"/p/{slug(p)}", p) for p in products]
                return group, "".join(self.skin.shuffled(links))
            for product in products:
                if path == f"/p/{slug(product)}":
                    options = self.skin.select("option", theme["option"], theme["values"])
                    return product, form(path, options, button("add", theme["verb"])) + link(
                        "review", "/info/reviews", "Reviews"
                    )
        return self._thanks(state) if path == "/cart" else None

    def submit(self, path: str, fields: Fields, state: SiteState) -> str:
        if not path.startswith("/p/"):
            return super().submit(path, fields, state)
        state["done"] = {"product": path[3:], "option": fields.get("option", "")}
        return "/cart"

    def goal(self, rng: np.random.Generator) -> SiteGoal:
        theme = self.theme
        group = pick(rng, tuple(theme["groups"]))
        product, value = pick(rng, theme["groups"][group]), pick(rng, theme["values"][1:])
        text = pick(
            rng,
            (
                "{verb}: {product} from {group}, {option} {value}",
                "In {group}, find {product} with {option} {value}, then {verb}",
            ),
        ).format(
            verb=theme["verb"].lower(),
            product=product,
            group=group,
            option=theme["option"].lower(),
            value=value,
        )
        moves = (
            Move("CLICK", f"g-{slug(group)}"),
            Move("CLICK", f"p-{slug(product)}"),
            Move("SELECT", "option", value),
            Move("CLICK", "add"),
        )
        done = {"product": slug(product), "option": value}
        return SiteGoal(text[0].upper() + text[1:], moves, done)


class Search(Site):
    """Type a query, narrow it, open the right result, act on it."""

    kind = "search"

    def nav(self) -> list[tuple[str, str, str]]:
        return [("n-catalog", "/", "Catalog")]

    def _titles(self) -> list[str]:
        return [f"{head} {tail}" for head in self.theme["heads"] for tail in self.theme["tails"]]

    def main(self, path: str, query: Fields, state: SiteState) -> tuple[str, str] | None:
        theme, skin = self.theme, self.skin
        if path == "/":
            fields = (
                skin.text("q", "Title"),
                skin.select("filter", theme["filter"], theme["values"]),
                button("go", "Search"),
            )
            return "Catalog", form("/find", *fields, method="get")
        if path == "/find":
            tail = query.get("q", "").split()[-1:]
            hits = [t for t in self._titles() if t.split()[-1:] == tail]
            narrowed = slug(query.get("filter", ""))
            links = [link(f"r-{slug(t)}", f"/item/{slug(t)}/{narrowed}", t) for t in hits]
            return "Results", "".join(skin.shuffled(links)) or "<p>Nothing found.</p>"
        for title in self._titles():
            if path.startswith(f"/item/{slug(title)}/"):
                similar = link("similar", "/info/similar", "Similar")
                return title, form(path, button("act", theme["verb"])) + similar
        return self._thanks(state) if path == "/done" else None

    def submit(self, path: str, fields: Fields, state: SiteState) -> str:
        if not path.startswith("/item/") or path.count("/") != 3:
            return super().submit(path, fields, state)
        _, _, title, narrowed = path.split("/")
        state["done"] = {"title": title, "filter": narrowed}
        return "/done"

    def goal(self, rng: np.random.Generator) -> SiteGoal:
        theme = self.theme
        title, value = pick(rng, self._titles()), pick(rng, theme["values"][1:])
        text = pick(
            rng,
            (
                "{verb} {title}, {filter} {value}",
                "Search {filter} {value} for {title} and {verb}",
            ),
        ).format(
            verb=theme["verb"].lower(), title=title, filter=theme["filter"].lower(), value=value
        )
        moves = (
            Move("TYPE", "q", title),
            Move("SELECT", "filter", value),
            Move("CLICK", "go"),
            Move("CLICK", f"r-{slug(title)}"),
            Move("CLICK", "act"),
        )
        return SiteGoal(
            text[0].upper() + text[1:], moves, {"title": slug(title), "filter": slug(value)}
        )


class Settings(Site):
    """Open the right section, set a choice and a switch, save."""

    kind = "settings"

    def nav(self) -> list[tuple[str, str, str]]:
        return [(f"s-{slug(s)}", f"/s/{slug(s)}", s) for s in self.theme["sections"]]

    def main(self, path: str, query: Fields, state: SiteState) -> tuple[str, str] | None:
        if path == "/":
            return "My account", link("offer", "/info/premium", "Premium account")
        for section, entries in self.theme["sections"].items():
            if path == f"/s/{slug(section)}":
                saved = state.get("done", {})
                fields = [
                    self.skin.select(slug(name), name, options, saved.get(slug(name), ""))
                    for name, options in entries["selects"].items()
                ]
                fields += [
                    self.skin.check(slug(name), name, slug(name) in saved)
                    for name in entries["checks"]
                ]
                return section, form(path, *self.skin.shuffled(fields), button("save", "Save"))
        return self._thanks(state) if path == "/done" else None

    def submit(self, path: str, fields: Fields, state: SiteState) -> str:
        if not path.startswith("/s/"):
            return super().submit(path, fields, state)
        state["done"] = dict(fields)
        return "/done"

    def goal(self, rng: np.random.Generator) -> SiteGoal:
        section = pick(rng, tuple(self.theme["sections"]))
        entries = self.theme["sections"][section]
        name = pick(rng, tuple(entries["selects"]))
        value, check = pick(rng, entries["selects"][name][1:]), pick(rng, entries["checks"])
        text = pick(
            rng,
            (
                "In {0}, set {1} to {2} and switch on {3}, then save",
                "Save {0} with {1} {2} and {3} switched on",
            ),
        ).format(section, name, value, check)
        moves = (
            Move("CLICK", f"s-{slug(section)}"),
            Move("SELECT", slug(name), value),
            Move("CLICK", slug(check)),
            Move("CLICK", "save"),
        )
        done = {slug(other): options[0] for other, options in entries["selects"].items()}
        return SiteGoal(text, moves, {**done, slug(name): value, slug(check): "on"})


class Calendar(Site):
    """Go to the right week and day, write an entry, save."""

    kind = "calendar"

    def nav(self) -> list[tuple[str, str, str]]:
        return [("n-week", "/", "Calendar")]

    def main(self, path: str, query: Fields, state: SiteState) -> tuple[str, str] | None:
        theme = self.theme
        if path in ("/", "/week/2"):
            week = 2 if path == "/week/2" else 1
            days = [
                f"<td>{link(f'd-{i}', f'/day/{week}/{slug(day)}', day)}</td>"
                for i, day in enumerate(_DAYS)
            ]
            there = ("/", "Previous week") if week == 2 else ("/week/2", "Next week")
            return f"Week {week}", link(
                "turn", *there
            ) + f"<table><tbody><tr>{''.join(days)}</tr></tbody></table>"
        parts = path.split("/")
        if len(parts) == 4 and parts[1] == "day" and parts[3] in map(slug, _DAYS):
            fields = (
                self.skin.text("title", "Title"),
                self.skin.select("time", "Time", _TIMES),
                button("save", f"{theme['verb']} {theme['noun']}"),
            )
            return f"{parts[3].capitalize()}, week {parts[2]}", form(path, *fields)
        return self._thanks(state) if path == "/done" else None

    def submit(self, path: str, fields: Fields, state: SiteState) -> str:
        if not path.startswith("/day/"):
            return super().submit(path, fields, state)
        state["done"] = {
            "day": path.removeprefix("/day/"),
            "title": fields.get("title", ""),
            "time": fields.get("time", ""),
        }
        return "/done"

    def goal(self, rng: np.random.Generator) -> SiteGoal:
        theme = self.theme
        title, time = pick(rng, theme["titles"]), pick(rng, _TIMES[1:])
        day, week = int(rng.integers(7)), int(rng.integers(1, 3))
        text = pick(
            rng,
            (
                "{0} {1} {2} in week {3}, {4} at {5}",
                "Week {3}, {4}, {5}: {0} {1} {2}",
            ),
        ).format(theme["verb"], theme["noun"], title, week, _DAYS[day], time)
        turn = (Move("CLICK", "turn"),) if week == 2 else ()
        moves = (
            *turn,
            Move("CLICK", f"d-{day}"),
            Move("TYPE", "title", title),
            Move("SELECT", "time", time),
            Move("CLICK", "save"),
        )
        return SiteGoal(
            text, moves, {"day": f"{week}/{slug(_DAYS[day])}", "title": title, "time": time}
        )


class Support(Site):
    """Find the form, say what it is about and where to answer, send."""

    kind = "support"

    def nav(self) -> list[tuple[str, str, str]]:
        return [("n-form", "/form", self.theme["page"])]

    def main(self, path: str, query: Fields, state: SiteState) -> tuple[str, str] | None:
        theme, skin = self.theme, self.skin
        if path == "/":
            text = f"<p>How can {self.brand} help you?</p>"
            return self.brand, text + link("faq", "/info/faq", "Frequent questions")
        if path == "/form":
            fields = [
                skin.select("topic", "Topic", theme["topics"]),
                skin.select("kind", theme["kind"], theme["kinds"]),
                skin.text("mail", "Your e-mail"),
                skin.text("phone", "Phone (if you like)"),
            ]
            return theme["page"], form("/form", *fields, button("send", theme["verb"]))
        return self._thanks(state) if path == "/done" else None

    def submit(self, path: str, fields: Fields, state: SiteState) -> str:
        if path != "/form":
            return super().submit(path, fields, state)
        state["done"] = {key: value for key, value in fields.items() if value}
        return "/done"

    def goal(self, rng: np.random.Generator) -> SiteGoal:
        theme = self.theme
        topic, kind = pick(rng, theme["topics"][1:]), pick(rng, theme["kinds"][1:])
        mail = f"{pick(rng, _NAMES)}@{pick(rng, _FAMILIES)}.example".lower()
        text = pick(
            rng,
            (
                "{0} a message about {1}, {2} {3}, answer to {4}",
                "Topic {1}, {2} {3}: {0} it with e-mail {4}",
            ),
        ).format(theme["verb"], topic, theme["kind"].lower(), kind, mail)
        moves = (
            Move("CLICK", "n-form"),
            Move("SELECT", "topic", topic),
            Move("SELECT", "kind", kind),
            Move("TYPE", "mail", mail),
            Move("CLICK", "send"),
        )
        return SiteGoal(text, moves, {"topic": topic, "kind": kind, "mail": mail})


KINDS: dict[str, type[Site]] = {
    kind.kind: kind for kind in (Booking, Shop, Search, Settings, Calendar, Support)
}
