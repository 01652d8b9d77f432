"""Settings from flags and YAML, and what is said where they do not fit."""

import json
from pathlib import Path

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from neuralop_sae.cli import command
from neuralop_sae.cli.command import Answer, Settings
from neuralop_sae.cli.train import TrainSettings
from neuralop_sae.training.config import TrainingConfig

from .conftest import call, check_refused


class MixSettings(Settings):
    amount: int = Field(2, ge=1, description="How much.")
    parts: list[str] = Field(description="Of what.")
    options: dict[str, float] = Field({}, description="How.")
    where: Path | None = Field(None, description="Where.")
    training: TrainingConfig = Field(TrainingConfig(), description="Nested.")


@pytest.fixture
def mix(monkeypatch):
    """A command that tells its settings, in an app with one more."""
    app = typer.Typer()
    monkeypatch.setattr(command, "app", app)

    @command.command(MixSettings)
    def mix(settings: MixSettings) -> Answer:
        """Mix."""
        if settings.amount == 99:
            raise KeyboardInterrupt
        return Answer({**settings.model_dump(mode="json"), "missing": float("nan")}, ["mixed [it]"])

    app.command("other")(lambda: None)
    return lambda *arguments: CliRunner().invoke(app, ["mix", *map(str, arguments)])


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_flags_go_before_the_file_and_mappings_are_merged(mix, tmp_path):
    path = write(tmp_path, "amount: 5\nparts: [a, b]\noptions: {heat: 1, time: 1e-3}\nwhere: here\ntraining: {n_epochs: 7}\n")
    flags = ["--amount", 3, "--options", '{"heat": 2}', "--training", '{"seed": 4}']
    result = mix("--config", path, *flags, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["amount"] == 3
    assert found["parts"] == ["a", "b"]
    assert found["options"] == {"heat": 2.0, "time": 0.001}
    assert found["where"] == "here"
    assert (found["training"]["n_epochs"], found["training"]["seed"]) == (7, 4)
    assert found["missing"] is None  # JSON has no NaN


def test_one_of_several_needs_no_list(mix, tmp_path):
    assert json.loads(mix("--config", write(tmp_path, "parts: a\n"), "--json").stdout)["parts"] == ["a"]


def test_one_file_for_several_commands(mix, tmp_path):
    path = write(tmp_path, "mix: {parts: [a]}\nother: {parts: [b]}\n")
    assert json.loads(mix("--config", path, "--json").stdout)["parts"] == ["a"]


def test_people_get_text(mix):
    result = mix("--parts", "a")
    assert result.stdout == "mixed [it]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("parts: [a]\namuont: 3", "there is no setting 'amuont' (it is 3); did you mean 'amount'?"),
        ("parts: [a]\namount: 0", "amount = 0: Input should be greater than or equal to 1"),
        ("amount: 3", "parts is missing: give --parts, or parts: in the file of --config"),
        ("parts: [a]\ntraining: {n_epoch: 3}", "no setting 'training.n_epoch' (it is 3); did you mean 'n_epochs'?"),
        ("- 1", "must hold settings by their names"),
        ("a: [", "is no YAML"),
        ("parts: [a]\nwhere: !!python/object/apply:os.getcwd []", "is no YAML"),
    ],
)
def test_what_does_not_fit_is_told(mix, tmp_path, text, said):
    check_refused(mix("--config", write(tmp_path, text)), said)


def test_a_missing_file(mix, tmp_path):
    check_refused(mix("--config", tmp_path / "none.yaml"), "there is no file")


def test_ctrl_c(mix):
    result = mix("--parts", "a", "--amount", 99)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


def test_help_tells_every_setting_of_train():
    text = call("train", "--help").stdout
    for name in TrainSettings.model_fields.keys() - {"activations"}:
        assert f"--{name.replace('_', '-')}" in text
    assert "torchrun --nproc-per-node 2" in text


def test_a_bare_call_lists_the_commands_in_their_order():
    text = call("--help").stdout
    commands = text[text.index("Commands") :]
    places = [commands.index(f" {name} ") for name in ("sites", "capture", "train", "evaluate", "probe", "report")]
    assert places == sorted(places)
