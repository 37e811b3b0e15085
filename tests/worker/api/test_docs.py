from pathlib import Path

import pytest

from worker.api import docs
from worker.api.docs import BEGIN, END, PAGE, table, with_table
from worker.api.job import JOB


def test_the_page_has_the_table_of_the_record() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page) == page, "run: python -m worker.api.docs"


def test_every_field_and_alias_is_in_the_table() -> None:
    rows = {line.split("`")[1]: line for line in table(JOB).splitlines()[2:]}
    nested = {
        f"{field.name}[].{each.name}" if field.is_list else f"{field.name}.{each.name}": each
        for field in JOB
        for each in field.record or ()
    }
    fields = {field.name: field for field in JOB} | nested
    assert rows.keys() == fields.keys()
    for name, field in fields.items():
        assert all(f"`{alias}`" in rows[name] for alias in (*field.aliases, *field.flat))


def test_the_command_rewrites_the_table_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "api.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter é\n", encoding="utf-8")
    monkeypatch.setattr(docs, "PAGE", page)
    docs.main()
    assert page.read_text(encoding="utf-8") == f"before\n{BEGIN}\n{table(JOB)}\n{END}\nafter é\n"


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError):
        with_table("no marks")
