"""Outcomes of model tests as JUnit's XML, which servers of continuous integration read; the same for the same outcomes.

Source: the schema of Jenkins's xUnit plug-in, https://github.com/jenkinsci/xunit-plugin (junit-10.xsd).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from qalam_core.display import printable
from qalam_core.evaluation.model_tests.outcomes import Outcome, Outcomes


def junit_xml(results: Sequence[Outcomes], shares: Mapping[str, float]) -> bytes:
    """A test case for each case. Of a file that meets its share, cases that failed are skipped, unless they must pass:
    a server then finds the build failed when `qalam test` does.
    """
    root = ElementTree.Element("testsuites")
    for one in results:
        failures = {case.case for case in one.failures(shares[one.name])}
        skipped = [case for case in one.cases if not case.passed and case.case not in failures]
        suite = ElementTree.SubElement(root, "testsuite", {
            "name": one.name, "tests": f"{len(one.cases)}", "failures": f"{len(failures)}", "errors": "0",
            "skipped": f"{len(skipped)}",
        })  # fmt: skip
        for case in one.cases:
            element = ElementTree.SubElement(suite, "testcase", {
                "classname": _xml(f"{one.name}.{case.group or case.kind}"), "name": _xml(case.case),
            })  # fmt: skip
            if case.case in failures:
                kind = {"message": "must pass" if case.mark == "must" else "failed", "type": case.kind}
                ElementTree.SubElement(element, "failure", kind).text = _text(case)
            elif case.state == "known failure":
                ElementTree.SubElement(element, "skipped", {"message": "known failure"})
            elif case.state == "unexpectedly passed":
                ElementTree.SubElement(element, "system-out").text = "known to fail, and passed"
            elif not case.passed:
                ElementTree.SubElement(element, "skipped", {"message": "failed, within the share that may"})
    ElementTree.indent(root, " ")
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _text(case: Outcome) -> str:
    """What is to be shown of a case."""
    lines = [f"{label}: {text}" for label, text in case.shown.items()]
    figures = [f"{name}: {value:.6g}" for name, value in case.figures.items()]
    return _xml("\n".join((*lines, *figures)))


def _xml(text: str) -> str:
    """Text without characters that XML 1.0 does not have, and without controls of direction."""
    return printable(text, lines=True).replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd")
