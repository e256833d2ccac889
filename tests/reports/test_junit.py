"""JUnit's XML: what a server of continuous integration counts is what `qalam test` fails for."""

from __future__ import annotations

from xml.etree import ElementTree

from qalam_core.evaluation.model_tests.outcomes import Outcome, Outcomes
from qalam_core.reports.junit import junit_xml
from tests.evaluation.model_tests.test_outcomes import outcome

CASES = (
    outcome(1, True), outcome(2, False), outcome(3, False, "known failure"), outcome(4, True, "known failure"),
)  # fmt: skip


def parsed(*cases: Outcome, share: float) -> ElementTree.Element:
    root = ElementTree.fromstring(junit_xml([Outcomes(name="a", cases=cases)], {"a": share}))
    (suite,) = root
    assert suite.attrib["tests"] == str(len(cases)) == str(len(suite))
    for key, tag in (("failures", "failure"), ("skipped", "skipped")):
        assert suite.attrib[key] == str(len(suite.findall(f"testcase/{tag}")))
    return suite


def test_a_file_that_fails_has_its_failures() -> None:
    suite = parsed(*CASES, share=1.0)
    assert suite.attrib["failures"] == "1"
    assert [case.attrib["name"] for case in suite if case.find("failure") is not None] == ["c2"]
    assert [case.attrib["name"] for case in suite if case.find("skipped") is not None] == ["c3"]


def test_a_file_that_meets_its_share_has_none_unless_a_case_must_pass() -> None:
    assert parsed(*CASES, share=0.5).attrib["failures"] == "0"
    suite = parsed(*CASES, outcome(5, False, "must"), share=0.1)
    assert [case.attrib["name"] for case in suite if case.find("failure") is not None] == ["c5"]


def test_hostile_text_stays_text() -> None:
    text = "</failure>&<![CDATA[\x00\x1b[31m\u202e\ufffe\uffff]]>"
    case = CASES[1].model_copy(update={"case": text, "group": text, "shown": {text: text}, "figures": {text: 1.0}})
    suite = parsed(case, share=1.0)
    found = suite[0].findtext("failure")
    assert found is not None
    assert "</failure>&<![CDATA[\\u0000\\u001b[31m\\u202e\ufffd\ufffd]]>" in found
    assert suite[0].attrib["name"].startswith("</failure>&")
