"""A training run: cut off and gone on with, logged, saved, and stopped by what is no number."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="training needs the extra [export]")
pytest.importorskip("matplotlib", reason="a run's curves need the extra [eval]")

from torch import nn  # noqa: E402 - after the skip
from torch.nn import functional as F  # noqa: E402

from openvis_rt.errors import InputError  # noqa: E402
from openvis_rt.training import clip_vis, instformer, miniatures, ovformer  # noqa: E402
from openvis_rt.training.command import run_command  # noqa: E402
from openvis_rt.training.run import Run, learning_rate, trained_weights  # noqa: E402


def network(seed: int = 0, width: int = 8) -> nn.Module:
    """With running statistics and dropout, which also have to go on where they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 1), nn.Dropout(0.2)
        )


def step_of(model: nn.Module, trouble: Callable[[int], None] = lambda _: None):
    """What a recipe's step is: its losses follow from the number alone."""

    def step(iteration: int):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(iteration))
        found = model(x)[:, 0]
        trouble(iteration)
        return {"square": F.mse_loss(found, x.sum(1)), "size": 0.1 * found.abs().mean()}

    return step


@pytest.fixture(autouse=True)
def _settings():
    """The generator stays as it was for other tests; two threads wait on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(before)


def trained(folder, iterations: int, trouble: Callable[[int], None] = lambda _: None):
    """A run from whatever is in the folder, with a network that it has not made before."""
    model = network(seed=len(list(folder.parent.iterdir())))
    torch.manual_seed(99)  # dropout does not go on by itself
    run = Run(folder, model, rate=0.01)
    run.train(step_of(model, trouble), iterations, warm_up=5)
    return model


def logged(folder) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


def press_ctrl_c(at: int) -> Callable[[int], None]:
    def press(iteration: int) -> None:
        if iteration == at:
            os.kill(os.getpid(), signal.SIGINT)

    return press


def fail(at: int) -> Callable[[int], None]:
    def raise_there(iteration: int) -> None:
        if iteration == at:
            raise RuntimeError("the power went out")

    return raise_there


def test_the_rate_rises_in_a_line_and_falls_by_half_a_cosine():
    assert learning_rate(0, 100, 10) == pytest.approx(0.1)
    assert learning_rate(9, 100, 10) == 1
    assert learning_rate(10, 100, 10) == 1
    assert learning_rate(55, 100, 10) == pytest.approx(0.5)
    assert learning_rate(100, 100, 10) == pytest.approx(0, abs=1e-12)
    assert learning_rate(0, 100, 0) == 1  # without a warm-up
    assert learning_rate(2, 3, 200) == pytest.approx(3 / 200)  # it ends within the warm-up
    rates = [learning_rate(i, 100, 10) for i in range(100)]
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert min(rates) > 0


def test_ctrl_c_saves_and_the_run_ends_as_if_nothing_had_been(tmp_path):
    torch.manual_seed(1)
    first = network(seed=0)
    whole = Run(tmp_path / "whole", first, rate=0.01)
    whole.train(step_of(first), 30, warm_up=5)

    torch.manual_seed(1)
    model = network(seed=0)
    run = Run(tmp_path / "cut", model, rate=0.01)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):  # after the running statistics have changed
        run.train(step_of(model, press_ctrl_c(12)), 30, warm_up=5)
    assert signal.getsignal(signal.SIGINT) is before
    saved = torch.load(run.last, weights_only=True)
    assert saved["iteration"] == 13  # the iteration was ended first

    other = trained(tmp_path / "cut", 30)  # begins with other weights
    for key, value in first.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    states = [
        torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "cut")
    ]
    for one, two in zip(*(s["optimizer"]["state"].values() for s in states), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
    weights = trained_weights(tmp_path / "cut")
    assert all(torch.equal(weights[key], value) for key, value in first.state_dict().items())


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    model = network()
    run = Run(tmp_path, model, rate=0.01)

    def press_twice(iteration: int) -> None:
        for _ in range(2):
            press_ctrl_c(3)(iteration)

    with pytest.raises(KeyboardInterrupt):
        run.train(step_of(model, press_twice), 30)
    assert not run.last.exists()


def test_a_run_that_died_goes_on_from_its_last_save_and_logs_nothing_twice(tmp_path):
    torch.manual_seed(1)
    first = network(seed=0)
    Run(tmp_path / "whole", first, rate=0.01).train(step_of(first), 240, warm_up=5)
    torch.manual_seed(1)
    model = network(seed=0)
    run = Run(tmp_path / "died", model, rate=0.01)
    with pytest.raises(RuntimeError, match="the power went out"):
        run.train(step_of(model, fail(230)), 240, warm_up=5)
    assert torch.load(run.last, weights_only=True)["iteration"] == 200
    assert logged(tmp_path / "died")[-1]["iteration"] == 220
    other = trained(tmp_path / "died", 240)
    for key, value in first.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    whole, died = (logged(tmp_path / name) for name in ("whole", "died"))
    assert [line["iteration"] for line in died] == list(range(20, 241, 20))
    for one, two in zip(whole, died, strict=True):
        assert (one["square"], one["size"]) == (two["square"], two["size"])


def test_a_short_run_is_logged_and_drawn(tmp_path):
    model = network()
    losses = []
    run = Run(tmp_path, model, rate=0.01)

    def step(iteration: int):
        found = step_of(model)(iteration)
        losses.append(float(found["square"].detach()))
        return found

    run.train(step, 3)
    [line] = logged(tmp_path)
    assert line["iteration"] == 3
    assert line["square"] == pytest.approx(sum(losses) / 3)
    picture = (tmp_path / "losses.svg").read_text()
    assert picture.startswith("<?xml")
    assert "svg" in picture[:400]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last.pt",
        "losses.jsonl",
        "losses.svg",
    ]


def test_a_run_that_is_done_is_left_alone(tmp_path):
    trained(tmp_path / "run", 4)
    before = (tmp_path / "run" / "last.pt").stat().st_mtime_ns

    def never(_: int) -> None:
        raise AssertionError("a step was taken")

    model = trained(tmp_path / "run", 4, never)
    assert (tmp_path / "run" / "last.pt").stat().st_mtime_ns == before
    assert all(
        torch.equal(value, trained_weights(tmp_path / "run")[key])
        for key, value in model.state_dict().items()
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_losses_that_are_no_numbers_stop_a_run_before_they_reach_the_weights(tmp_path, value):
    model = network()
    run = Run(tmp_path, model, rate=0.01)
    weights: dict[str, torch.Tensor] = {}

    def step(iteration: int):
        found = step_of(model)(iteration)
        if iteration == 2:
            weights.update({k: v.clone() for k, v in model.state_dict().items()})
            found["size"] = found["size"] * value
        return found

    with pytest.raises(InputError, match="iteration 2 has losses that are no numbers"):
        run.train(step, 30)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert not run.last.exists()


def test_a_folder_of_another_model_is_refused(tmp_path):
    trained(tmp_path / "run", 2)
    wider = network(width=9)
    with pytest.raises(InputError, match="of another model or recipe"):
        Run(tmp_path / "run", wider, rate=0.01).train(step_of(wider), 4)
    with pytest.raises(InputError, match="holds no run"):
        trained_weights(tmp_path / "none")


def test_vectors_do_not_decay_and_slower_parts_get_a_part_of_the_rate(tmp_path):
    model = network()
    model[2].bias.requires_grad_(requires_grad=False)
    run = Run(tmp_path, model, rate=0.01, decay=0.05, slower={"0.": 0.25})
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["weight_decay"], group["part"])
        for group in run.optimizer.param_groups
        for parameter in group["params"]
    }
    assert found == {
        "0.weight": (0.05, 0.25),
        "0.bias": (0.0, 0.25),
        "1.weight": (0.0, 1.0),
        "1.bias": (0.0, 1.0),
        "2.weight": (0.05, 1.0),
    }
    run.train(step_of(model), 1, warm_up=4)
    assert {group["lr"] for group in run.optimizer.param_groups} == {0.01 / 4, 0.01 / 16}


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (clip_vis.main, ("out", "--clip", "none"), "none holds no run: there is no none/last.pt"),
        (ovformer.main, ("out", "--proposals", "none", "--clip", "none"), "holds no run"),
        (instformer.app, ("tokens", "out", "--proposals", "none", "--clip", "none"), "no run"),
        (miniatures.main, ("none", "-o", "out"), "none holds none of the runs"),
    ],
    ids=["clip-vis", "ovformer", "tokens", "miniatures"],
)
def test_a_recipe_without_what_it_builds_on_says_so_in_a_line(
    tmp_path, monkeypatch, capsys, command, arguments, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["recipe", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_command(command)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
