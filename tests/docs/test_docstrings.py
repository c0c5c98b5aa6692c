"""Docstrings as the API reference and the tables of arguments read them."""

from docstrings import as_markdown, parameters

DOC = """A door.

    Parameters
    ----------
    width, height: in metres;
        both must be above 0.
    open: whether it is. lock: which one.

    Raises ValueError for a door that fits nowhere.
    """


def test_parameters_are_read_with_their_meaning():
    both = "in metres; both must be above 0."
    assert parameters(DOC) == [
        ("width", both),
        ("height", both),
        ("open", "whether it is."),
        ("lock", "which one."),
    ]
    assert parameters("Nothing to see.") == []


def test_lists_become_markdown_and_the_rest_stays():
    text = as_markdown(DOC)
    assert text.startswith("A door.\n\n**Parameters**\n\n- **`width, height`**: in metres;")
    assert "- **`open`**: whether it is.\n- **`lock`**: which one.\n\nRaises" in text
    google = as_markdown("Adds.\n\nArgs:\n    a: one.\n\nReturns:\n    The sum.\n")
    assert "**Args**\n\n- **`a`**: one." in google
    assert "**Returns**\n\nThe sum." in google.replace("    ", "")
