"""The page's pictures say what the dataset holds; personal data is counted and never shown."""

import re
from dataclasses import replace

import numpy as np
import pytest

from holdfast.data.freeze import freeze_records
from holdfast.data.inspect.inspection import inspect_dataset
from holdfast.data.inspect.validity import masked
from holdfast.report.inspection import write_inspection
from test_inspect import clean


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """120 prompts of three categories, none of category x being long; sources ann, bob against one baseline; one e-mail address."""
    folder = tmp_path_factory.mktemp("page")
    said = []
    for n, j in enumerate(clean()[:360]):
        long = n // 9 % 3 == 2 and j.category != "x"
        prompt = j.prompt + " And so on." * (n // 9 % 3 == 1) + " And much more than that, please." * long
        said.append(replace(j, prompt=prompt, sources=("base", "bob") if n % 2 else ("ann", "base")))
    said[0] = replace(said[0], responses=("write to jane.doe@example.org today, please do", said[0].responses[1]))
    ds = freeze_records(said, folder / "data")
    found = inspect_dataset(ds, times=50, power=1)
    return write_inspection(found, ds, folder).read_text(), found


def test_the_map_has_every_prompt_in_every_colouring(page):
    html, found = page
    figure = html[html.index('class="map"') : html.index("</figure>", html.index('class="map"'))]
    dots = re.findall(r'<circle class="pt ([^"]*)" cx="([\d.]+)%" cy="([\d.]+)%"', figure)
    assert len(dots) == 120 == found.facts["prompts"]
    assert all(
        re.fullmatch(r"c\d k\d a\d d\d", css) and 0 <= float(x) <= 100 and 0 <= float(y) <= 100 for css, x, y in dots
    )
    assert sorted(np.unique([css[:2] for css, *_ in dots], return_counts=True)[1]) == [40, 40, 40]
    # Three annotators agree, but for one judgement in a hundred.
    assert sum(css[6:8] == "a0" for css, *_ in dots) > 110
    for word in ("Category", "Cluster", "Agreement", "Coverage"):
        assert f">{word}</label>" in figure
    # A radio button's own id is what the stylesheet asks for.
    assert all(f"#map-{k}:checked" in html and f'id="map-{k}"' in html for k in "ckad")


def test_cells_and_sources_are_drawn_as_counted(page):
    html, found = page
    cells = {(c["category"], c["length"]): c for c in found["coverage/cells"].facts["cells"]}
    drawn = re.findall(r'title="(\w), (\w+): (\d+) prompts', html)
    assert {(a, b): int(n) for a, b, n in drawn} == {k: c["prompts"] for k, c in cells.items()} and len(drawn) == 9
    edges = re.findall(r"(\w+) against (\w+): (\d+) comparisons, the first wins ([\d.]+) %", html)
    assert {frozenset(e[:2]): (int(e[2]), e[3]) for e in edges} == {
        frozenset(("ann", "base")): (180, "100.0"), frozenset(("base", "bob")): (180, "100.0"),
    }  # fmt: skip


def test_power_is_on_the_page(page):
    html, found = page
    assert "What it could not have seen" in html
    for p in found.power.faults:
        assert p.fault.name in html
    for what in found.power.blind.values():
        assert what in html


def test_personal_data_is_never_printed(page):
    html, found = page
    assert len(found["validity/personal"].rows) == 1 and "e-mail 1" in html
    assert "jane.doe" not in html
    assert masked("a@b1.org at 10.0.0.1, 555-123-4567") == "a@b1.org at [network address], [telephone]"
    assert masked("jane@b1.org; 4111 1111 1111 1111; 078-05-1120") == "[e-mail]; [number]; [national number]"


def test_nothing_is_loaded_and_links_stay_on_the_page(page):
    html, _ = page
    targets = set(re.findall(r'href="#([^"]+)"', html))
    assert targets and all(f'id="{t}"' in html for t in targets)
    assert not re.search(r"(src|href)=[\"'](?!#)", html) and html.count("<script>") == 1
