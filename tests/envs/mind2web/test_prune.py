import time

import pytest

from stepagent.envs.mind2web.data import PlainFile
from stepagent.envs.mind2web.prune import (
    DETAILS,
    MAX_PAGE,
    Candidate,
    Detail,
    Page,
    attributes_text,
    tokens,
)
from stepagent.envs.mind2web.records import Problems
from stepagent.envs.mind2web.sites import BundledSites
from stepagent.eval.benches.mind2web import big_page, upstream_view


def c(*nodes):
    return tuple(Candidate(str(node), "a") for node in nodes)


PAGE = """<html backend_node_id="1"><body backend_node_id="2">
  <div backend_node_id="3"><div backend_node_id="4">
    <a backend_node_id="5"><text backend_node_id="6">One</text></a>
    <a backend_node_id="7" role="link" aria_label="Two"/>
    <a backend_node_id="8"><text backend_node_id="9">Three</text></a>
    <a backend_node_id="10"><text backend_node_id="11">Four</text></a>
    <a backend_node_id="12"><text backend_node_id="13">Five</text></a>
    <a backend_node_id="14"><text backend_node_id="15">Six</text></a>
  </div></div>
  <p backend_node_id="16"><text backend_node_id="17">Far away</text></p>
</body></html>"""


def test_candidates_ancestors_and_three_siblings_remain():
    view = Page(PAGE).draw(c(5))
    # Six, fourth sibling to the right, and the paragraph are gone, and so are the bare wrappers
    # around one element (body and the outer div); the inner one holds several and stays.
    assert view.text == (
        "<html> <div> <a id=0> One </a> <a link two/> <a> Three </a> <a> Four </a> </div> </html>"
    )
    assert view.nodes == ("5",)
    assert Page(PAGE).draw(c(14)).text.count("<a") == 4


def test_elements_are_numbered_in_the_order_of_the_page():
    view = Page(PAGE).draw(c(14, 5, 10))
    assert view.nodes == ("5", "10", "14")
    assert "<a id=0> One" in view.text
    assert "<a id=2> Six" in view.text
    assert view.labels == ("<a id=0 One>", "<a id=1 Four>", "<a id=2 Six>")


def test_descendants_by_depth_and_number():
    inner = "<b backend_node_id='99'><text>deep</text></b>"
    for i in range(9, 0, -1):
        inner = f"<div backend_node_id='{i}' title='t{i}'>{inner}</div>"
    view = Page(f"<html backend_node_id='50'>{inner}</html>").draw(c(1))
    # The candidate's children have depth 0, so depth 5 is t7; t8 and below are gone.
    assert "t7" in view.text
    assert "t8" not in view.text
    many = "".join(f"<i backend_node_id='{i}' title='n{i}'/>" for i in range(100, 200))
    view = Page(f"<html backend_node_id='50'><ul backend_node_id='1'>{many}</ul></html>").draw(c(1))
    assert view.text.count("<i ") == 50
    assert "n149" in view.text


def test_attributes_become_a_short_text():
    assert attributes_text({"name": "q", "role": "none", "value": "http://x", "title": "Q"}) == "q"
    long = {"alt": "one two three four five six", "title": "x" * 15, "class": "a b"}
    assert attributes_text(long) == "one two three four five a b"
    assert attributes_text({"aria-label": "Close"}) == "close"  # raw pages write it so


def test_options_of_a_select():
    html = (
        "<html backend_node_id='1'><select backend_node_id='2'><option><text>red</text></option>"
        "<option option_selected='true'><text>dark  blue</text></option></select></html>"
    )
    view = Page(html).draw(c(2))
    assert view.options == {0: ("red", "dark blue")}
    assert view.tags == ("select",)


@pytest.mark.parametrize("task_id", ["booking/ace-courts/0", "settings/campus-desk/1"])
def test_equals_the_plain_way_on_bundled_pages(task_id):
    for step in BundledSites("cleaned", Problems()).task(task_id).steps:
        nodes = [candidate.node for candidate in step.candidates]
        for some in (nodes, nodes[::3], nodes[:1]):
            view = Page(step.html).draw(tuple(Candidate(node) for node in some))
            assert view.text == upstream_view(step.html, some)


@pytest.mark.real_data
def test_equals_the_plain_way_on_real_pages(real_steps):
    source, compared = PlainFile(real_steps, "cleaned", Problems()), 0
    for task_id in [t for split in ("train", "dev", "test") for t in source.ids(split)]:
        for step in source.task(task_id).steps:
            page = Page(step.html)
            on_it = [k for k in step.candidates if k.node in page]
            if on_it:
                nodes = [candidate.node for candidate in on_it]
                assert page.draw(on_it).text == upstream_view(step.html, nodes)
                compared += 1
    assert compared == 90  # the other pages are cut before their first candidate


@pytest.mark.parametrize("budget", [30, 100, 300, 1000])
def test_the_budget_holds(budget):
    html = big_page(0.05)
    page = Page(html)
    links = [n for n, node in page._nodes.items() if node.tag == "a"][:50]
    view = page.view(c(*links), budget)
    assert tokens(view.text) <= budget
    assert 0 < len(view.nodes) <= 50
    assert set(view.nodes) == set(links[: len(view.nodes)])  # the best are kept
    if budget == 1000:
        assert len(view.nodes) == 50


def test_texts_may_be_candidates():
    page = Page(
        "<html backend_node_id='9'><svg backend_node_id='1'><g backend_node_id='3' title='t'/>"
        "<text backend_node_id='2' class='tick'>Jan</text></svg><button backend_node_id='4'/>"
        "</html>"
    )
    view = page.draw(c(2, 4))
    assert (
        view.text == "<html> <svg> <g t/> Jan </svg> <button id=0/> </html>\n<text id=1 tick Jan>"
    )
    assert view.nodes == ("4", "2")
    assert view.labels == ("<button id=0>", "<text id=1 tick Jan>")
    assert view.tags == ("button", "text")
    # Its siblings stand around it as around any other candidate.
    around = Page(PAGE).draw(c(6))
    assert around.text == "<html> <a> One </a> </html>\n<text id=0 One>"


@pytest.mark.parametrize("tag", ["noscript", "template", "style"])
def test_candidates_within_unseen_elements_are_listed(tag):
    page = Page(
        f"<html backend_node_id='1'><{tag} backend_node_id='2'><a backend_node_id='3' title='Go'>"
        f"<text>there</text></a></{tag}><a backend_node_id='4'/></html>"
    )
    for detail in DETAILS:
        view = page.draw(c(4, 3), detail)
        assert set(view.nodes) == {"3", "4"}
        assert f"<a id={view.nodes.index('3')} go there>" in view.text


def test_candidates_that_the_page_lacks_are_listed_in_an_order_that_tells_nothing():
    missing = [Candidate(str(n), "a", (("title", f"t{n}"),)) for n in range(100, 110)]
    view = Page(PAGE).draw([*c(5), *missing])
    assert view.nodes[0] == "5"
    assert len(view.nodes) == 11
    assert view.text.endswith(">")
    assert all(f"id={i}" in view.text for i in range(11))
    backwards = Page(PAGE).draw([*reversed(missing), *c(5)])
    assert backwards == view
    assert view.nodes[1:] != tuple(k.node for k in missing)


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ("", ""),
        ("   ", ""),
        ("no markup at all", "page without node ids"),
        ("<html backend_node_id='1'><a backend_node_id='2'>x</b></html>", "broken markup"),
        ("<html backend_node_id='1'><a backend_node_id='2'", "broken markup"),
        ("<html backend_node_id='1'>\x00<a backend_node_id='2'/>&nope;</html>", "broken markup"),
        ("<!DOCTYPE html><p backend_node_id=1>raw <a backend_node_id=2>page</a>", ""),
        ("<html><a>no ids</a></html>", "page without node ids"),
        ("<a backend_node_id='2'>" * 5000, "broken markup"),
        (
            "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><a backend_node_id='2'>&e;</a>",
            "",
        ),
    ],
)
def test_broken_pages_are_named_and_never_raise(html, problem):
    page = Page(html)
    assert page.problem == problem
    text = page.view(c(2, 3), 200).text
    assert "id=0" in text
    assert "root:" not in text


def test_no_entity_grows():
    bomb = '<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {x} "{f"&{y};" * 10}">' for x, y in zip("bcdefghij", "abcdefghi", strict=True)
    )
    text = Page(f"<?xml version='1.0'?><!DOCTYPE d [{bomb}]><d backend_node_id='1'>&j;</d>")
    assert len(text.draw(c(1)).text) < 1000


def test_a_page_of_20_mb_costs_no_time():
    html = "<html backend_node_id='1'>" + "<a backend_node_id='2'>x</a>" * 700_000
    assert len(html) > 2 * MAX_PAGE - 1_000_000
    start = time.process_time()
    page = Page(html)
    assert page.problem == "page over 10 MB"
    assert page.draw([Candidate("2", "a", (("title", "x"),))]).text == "<a id=0 x>"
    assert time.process_time() - start < 1


def test_a_deep_detail_can_be_cut():
    flat = Page(PAGE).draw(c(5, 8), Detail(flat=True, words=4))
    assert flat.text == "<a id=0 One>\n<a id=1 Three>"


@pytest.mark.parametrize("page", ["<!DOCTYPE html><html><p {} backend_node_id='1'>a</p></html>"])
def test_an_element_of_countless_attributes_takes_no_time(page):
    start = time.process_time()
    parsed = Page(page.format(" ".join(f"a{i}='{i}'" for i in range(100_000))))
    assert time.process_time() - start < 5, "a minute and a half before"
    assert parsed.problem == "an element of more than 500 attributes"
    fine = Page(page.format(" ".join(f"a{i}='{i}'" for i in range(400))))
    assert (fine.problem, "1" in fine) == ("", True)
