"""A calibrated ranker: fitted on validation rows, and the same where it is served."""

import json
import shutil
from pathlib import Path

import pytest
from trained_run import SETTINGS, STEADY, metrics, predicted_alone, train_ranker

from torchrec_adrec.config.run import load_config
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import CheckpointError, TrainingError
from torchrec_adrec.evaluation.predict import evaluate_split, split_logits
from torchrec_adrec.schema import Schema
from torchrec_adrec.serve.recommender import Recommender
from torchrec_adrec.tasks.calibration import load_calibrations, to_json
from torchrec_adrec.tasks.sharded import final_checkpoint, restore_whole
from torchrec_adrec.training.calibrate import fit_calibrations


@pytest.fixture(scope="module")
def calibrated(
    run: Path, process: Process, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same run, its ranker trained again and calibrated."""
    calibration = "ranking.calibration=platt"
    config = load_config(None, [*SETTINGS, STEADY, calibration, "train.epochs=2"])
    out = tmp_path_factory.mktemp("calibrated") / "run"
    shutil.copytree(run, out)
    with pytest.MonkeyPatch.context() as patch:
        # 400 validation rows, of which some 40 observe each class of `engagement`.
        patch.setattr("torchrec_adrec.training.calibrate.LEAST", 1)
        train_ranker(out, config, process)
    return out


def test_a_calibration_is_fitted_on_the_validation_rows(
    calibrated: Path, process: Process
) -> None:
    """Fitted again on these rows it is the same, on the test rows another one."""
    schema = Schema.load(calibrated / "data/schema.json")
    model, final = restore_whole("ranking", calibrated, schema)
    kept = load_calibrations(final)
    assert set(kept) == set(schema.label_names)
    slope = kept["click"].model_dump()["slope"]
    for name, is_same in (("valid", True), ("test", False)):
        folder = calibrated / "data" / name
        logits = split_logits(model, folder, schema, process, 512)
        try:
            again = fit_calibrations("platt", schema, logits)
        except TrainingError:
            # So small a model may order these rows no better than chance.
            assert not is_same
        else:
            refitted = again["click"].model_dump()["slope"]
            assert (refitted == pytest.approx(slope, rel=1e-3)) == is_same


def test_a_calibrated_prediction_is_reported_and_served(
    calibrated: Path, process: Process
) -> None:
    schema = Schema.load(calibrated / "data/schema.json")
    model, final = restore_whole("ranking", calibrated, schema)
    kept = load_calibrations(final)
    reported = metrics(calibrated, "ranking")
    assert reported["calibration"] == to_json(kept)
    test = calibrated / "data/test"
    restored = evaluate_split(
        model, test, schema, process, 512, calibrations=load_calibrations(final)
    )
    for label_name, figures in restored.items():
        expected = pytest.approx(reported["test"][label_name], abs=1e-6, nan_ok=True)
        assert figures == expected
    raw = evaluate_split(model, test, schema, process, 512)
    assert raw["click"]["auc"] == pytest.approx(restored["click"]["auc"], abs=1e-9)
    assert raw["click"]["log_loss"] != pytest.approx(restored["click"]["log_loss"])
    served = Recommender.load(calibrated)
    for ad in served.recommend({}).ads.to_dicts():
        alone = predicted_alone(model, served, ad["ad_id"], kept)
        for label_name, value in alone.items():
            assert ad[label_name] == pytest.approx(value, rel=1e-5)


def test_a_calibration_that_is_missing_or_damaged_is_refused(
    calibrated: Path, tmp_path: Path
) -> None:
    path = final_checkpoint(calibrated / "ranking").path
    copied = shutil.copytree(path, tmp_path / path.name)
    text = (copied / "calibration.json").read_text()
    (copied / "calibration.json").write_text(text.replace("1", "2"))
    with pytest.raises(CheckpointError, match=r"calibration\.json"):
        load_calibrations(checkpoint.open_checkpoint(copied))
    hashes = json.loads((copied / "hashes.json").read_text())
    del hashes["calibration.json"]
    (copied / "hashes.json").write_text(json.dumps(hashes))
    with pytest.raises(CheckpointError, match=r"has no calibration\.json, expected"):
        load_calibrations(checkpoint.open_checkpoint(copied))
