import dataclasses

import pytest

from pipelines import OptionError
from seq2seq.runs import kept_epochs
from seq2seq.training import train


def test_tensorboard_is_told_the_figures_of_each_epoch(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained.folder / "tensorboard" / "validation")).Reload()
    assert [event.step for event in events.Tensors("epoch_chrf")] == [0, 1]


def test_an_unknown_tracker_is_refused_before_anything_is_read(config, tmp_path):
    for track in (["tensorbord"], "tensorbord"):
        with pytest.raises(OptionError, match=r"track='tensorbord'.*did you mean 'tensorboard'"):
            train(dataclasses.replace(config, corpus="none.tsv"), tmp_path / "run", track=track)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of others' packages
def test_wandb_and_mlflow_are_told_options_and_figures_where_they_are_installed(config, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="pip install wandb mlflow: extras that CI does without")
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    train(dataclasses.replace(config, keep_epochs=1), tmp_path / "run", track=["wandb", "mlflow"])
    (kept,) = (path.read_bytes() for path in tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert all(name in kept for name in (b"epoch/val_chrf", b"keep_epochs", str(tmp_path / "run").encode()))
    (found,) = mlflow.search_runs(output_format="list")
    assert (found.info.status, found.info.run_name) == ("FINISHED", str(tmp_path / "run"))
    assert found.data.params["units"] == "8" and found.data.metrics["val_loss"] > 0
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "val_chrf")
    assert [figure.step for figure in history] == [0, 1] and list(kept_epochs(tmp_path / "run")) == [2]
    mlflow.set_tracking_uri("nowhere://")
    with pytest.raises(OptionError, match="track='mlflow': cannot start: "):
        train(config, tmp_path / "other", track=["mlflow"])
