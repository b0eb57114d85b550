"""Mapping files: what `hospital.yaml` may not say, and how a folder of them is read."""

from pathlib import Path

import pytest

from ich_client.hospital import HospitalConfig, load_mappings
from ich_models.errors import ConfigurationError
from ich_models.yaml_config import load

MAPPING = """\
hospital: north
table:
  file: north.csv
  patient: MRN
  columns:
    age: {from: AGE_Y}
    ivh: {from: IVH, codes: {J: yes, N: no}}
    mrs: MRS
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("hospital: north", "hospital: North Ward", "hospital.yaml:1:11: hospital: "),
        ("  patient: MRN", "  min_patients: 5", "min_patients chooses among the hospitals of split_by"),
        ("  patient: MRN", "  separator: '.'", "'.' separates cells and decimals"),
        ("  patient: MRN", "  encoding: utf-9", "hospital.yaml:4:13: table.encoding: no encoding 'utf-9'"),
        ("  patient: MRN", "  encoding: rot13", "no encoding 'rot13'"),
        ("{from: AGE_Y}", "{date: IN, since: B, format: '%d.%m.%Y %d'}", "format '%d.%m.%Y %d' cannot be read"),
        ("{from: AGE_Y}", "{date: IN, since: B, format: '%Q'}", "format '%Q' cannot be read"),
        ("{from: AGE_Y}", "{date: IN, since: B, format: '%d.%m.%Y%'}", "cannot be read"),
        ("J: yes, N: no", "1: yes, '1.0': no", "'1' and '1.0' are the same code, named twice"),
        ("{J: yes, N: no}", "{J: yes, N: no}, missing: N", "'N' and 'N' are the same code, named twice"),
        ("J: yes, N: no}", "J: yes, j: no}, ignore_case: true", "'J' and 'j' are the same code, named twice"),
        ("{from: AGE_Y}", "{form: AGE_Y}", "hospital.yaml:6:11: table.columns.age.form: this key is not known"),
        ("{from: AGE_Y}", "{date: IN, since: 1950-02-31}", "since: 1950-02-31 is no day"),
        ("{from: AGE_Y}", "{date: IN, since: B, months: {sty: 1}}", "months are named, and format has no place"),
        ("{from: AGE_Y}", "{cases: [{value: 3, where: {A: {not: x, in: y}}}]}", "write one condition"),
        ("mrs: MRS", "mrs: MRS\nlimits: {threads: 0}", "limits.threads"),
    ],
)
def test_mapping_files_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert old in MAPPING
    Path("hospital.yaml").write_text(MAPPING.replace(old, new))
    with pytest.raises(ConfigurationError) as caught:
        load(Path("hospital.yaml"), HospitalConfig)
    assert message in str(caught.value)


def test_a_folder_of_mappings_gives_all_problems_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no hospital mapping.*\n.*write one hospital.yaml per table"):
        load_mappings(tmp_path)
    with pytest.raises(ConfigurationError, match="there is no such folder"):
        load_mappings(tmp_path / "absent")
    (tmp_path / "b.yaml").write_text(MAPPING)
    (tmp_path / "a.yaml").write_text(MAPPING.replace("north\n", "east\n", 1))
    assert [document.value.hospital for document in load_mappings(tmp_path)] == ["east", "north"]
    (tmp_path / "b.yaml").write_text("hospital: b\n")
    (tmp_path / "c.yaml").write_text(MAPPING + "limit: {}\n")
    with pytest.raises(ConfigurationError) as caught:
        load_mappings(tmp_path)
    assert [problem.where.rpartition("/")[2].split(":")[0] for problem in caught.value.problems] == ["b.yaml", "c.yaml"]
