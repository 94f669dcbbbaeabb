"""Models from elsewhere: of one's own, of torchvision, transformers and open_clip."""

from __future__ import annotations

import json
import logging
import re
from functools import cache, partial
from operator import itemgetter
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import composed, write_images
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

import vitsee
from vitsee.models import loader, residual, timm_architecture
from vitsee.models.preprocessing import described
from vitsee.models.sources import python
from vitsee.models.values import as_text
from vitsee.options import ModelOptions
from vitsee.study import Study

pytestmark = pytest.mark.usefixtures("undrawn")
elsewhere = pytest.mark.xdist_group("elsewhere")
"""One worker imports transformers and open_clip, which takes seconds."""

SIDE = 32
SIZE = (3, SIDE, SIDE)
QUIET = ("run.device=cpu", "run.workers=0", "run.progress=false", "batch_size=8")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 images in two classes, of the size that the small models take."""
    return write_images(tmp_path_factory.mktemp("photos"), 24, side=SIDE)


@pytest.fixture
def measure(photos, tmp_path):
    """`vitsee.run_experiment` on these images."""

    def call(*words: str, **options: Any) -> vitsee.Result:
        data = {} if "dataset" in options else {"dataset": "folder", "dataset.root": photos}
        outputs = {"run.outputs": tmp_path / "outputs"}
        return vitsee.run_experiment(*QUIET, *words, **data, **outputs, **options)

    return call


class Net(nn.Module):
    """A small network of one's own, whose middle gives a tuple and a dictionary."""

    def __init__(self, factor: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self._factor = factor
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.pair, self.named = Pair(), Named()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.pair(self.stem(x))
        return self.head(self.named(x * self._factor)["maps"].mean((2, 3)))


class Doubled(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.relu(), x.sum()


class Named(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"loss": x.mean(), "parts": [None, x.tanh()], "maps": x}


LAYERS = {"analysis.layers": ["stem", "pair", "named", "head"]}


def mine(net: nn.Module | None = None, **options: Any) -> vitsee.Model:
    return vitsee.Model(
        Net() if net is None else net, **({"name": "mine", "input_size": SIZE} | options)
    )


def identity(model: Any, *words: str) -> str:
    """The fingerprint of an experiment with this model, or with the model that these words name."""
    from vitsee import config, given

    named = given.options("model", model) if model is not None else {}
    words = (*words, *(config.override(key, value) for key, value in named.items()))
    with given.here({"model": model}):
        experiment = composed(
            "dataset=scenes", "dataset.size=16", "analysis.layers=[*]", *QUIET, *words
        )
        return Study(experiment).fingerprint


# ---- from Python ----


def test_a_network_of_one_s_own_is_measured_and_stays_as_it_is(measure):
    net = Net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    result = measure("analysis=cka", model=mine(net), **LAYERS)
    assert list(result.matrix().index) == LAYERS["analysis.layers"]
    assert result.labels.model == "mine"
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_the_same_network_gives_the_same_bytes_from_python_and_from_timm(measure):
    asked = ("model=timm", "model.timm=test_vit", "model.pretrained=false")
    theirs = measure("analysis=cka", "images=8", *asked)
    net = timm_architecture.build(composed(*asked).model)
    transform = timm.data.create_transform(**timm_architecture.data_config(net), is_training=False)
    ours = measure("analysis=cka", "images=8", model=vitsee.Model(net, transform=transform))
    assert ours.path != theirs.path
    assert (ours.path / "cka.csv").read_bytes() == (theirs.path / "cka.csv").read_bytes()


def test_two_networks_are_compared_and_one_may_be_named(measure):
    pair = measure("analysis=cka", model=mine(), other=mine(Net(seed=1), name="yours"), **LAYERS)
    assert pair.path.parent.name == "mine-vs-yours"
    assert (np.diag(pair.matrix()) < 0.99).all()


def test_a_name_among_the_options_comes_before_the_object_s_own(measure):
    result = measure("analysis=cka", "images=8", "model.name=theirs", model=mine(), **LAYERS)
    assert result.labels.model == "theirs"


def test_the_second_model_may_be_named_as_on_the_command_line(measure):
    result = measure(
        *("analysis=cka", "images=8", "analysis.other_layers=[blocks.*]"),
        **{"model": mine(), "other": "vit_nano"} | LAYERS,
    )
    assert result.labels.other == "vit_nano"
    assert result.made_with["models"]["other"]["timm"]


def test_tuples_and_dictionaries_are_read_by_their_first_tensor_of_images(measure):
    net = Net()
    layers = ["pair", "named"]
    wrapped = measure("analysis=cka", model=mine(net), **{"analysis.layers": layers}).matrix()

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.pair, self.named = net.stem, nn.ReLU(), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            return self.named(self.pair(self.stem(x)))

    plain = measure("analysis=cka", model=mine(Plain()), **{"analysis.layers": layers}).matrix()
    np.testing.assert_allclose(wrapped, plain, atol=1e-12)
    assert wrapped.loc["pair", "named"] < 0.9999


def test_compiled_and_parallel_networks_are_measured_as_what_they_wrap():
    plain = identity(mine())
    partly = Net()
    partly.stem = torch.compile(partly.stem)
    inside = Net()
    inside.compile()
    for net in (torch.compile(Net()), nn.DataParallel(Net()), partly, inside):
        assert identity(mine(net)) == plain


def test_a_network_without_parameters_is_measured(measure):
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.flat = nn.AvgPool2d(4), nn.Flatten()

        def forward(self, x: Tensor) -> Tensor:
            return self.flat(self.pool(x))

    result = measure("analysis=cka", "analysis.layers=[pool,flat]", model=mine(Pooled()))
    np.testing.assert_allclose(result.matrix(), 1, atol=1e-6)


@pytest.mark.parametrize("analysis", ["cka", "fourier", "token_norm"])
def test_an_output_that_the_next_module_overwrites_counts_as_it_was(analysis, measure):
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        stem, norm = nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8).eval()
        net = nn.Sequential(stem, norm, nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(512, 2))
        words = (f"analysis={analysis}", "analysis.layers=['0','1','2']")
        found.append(measure(*words, model=mine(net)).tables[analysis])
    assert len(set(found[0].iloc[:, 0])) > 1
    pd.testing.assert_frame_equal(found[0], found[1], check_exact=True)


class Steady(nn.Module):
    """A network that is given its images in double precision would fail."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4).half()

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


def test_a_network_in_half_precision_is_measured_in_float32(measure):
    net = Steady()
    result = measure("analysis=cka", "analysis.layers=[stem]", model=mine(net))
    assert result.table["cka"].item() == pytest.approx(1)
    assert net.stem.weight.dtype == torch.float16


class Unsteady(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("it wants\nsomething else")


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def random_crop() -> Any:
    return v2.Compose([v2.RandomCrop(8), v2.PILToTensor(), v2.ToDtype(torch.float32)])


def to_tensor(*more: Any) -> Any:
    return v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), *more])


MISTAKES = {
    "no network": (
        lambda: [5],
        r"a model is an nn.Module or vitsee.Model\(net, name=…\), not list",
    ),
    "a side for a size": (
        lambda: vitsee.Model(Net(), name="mine", input_size=32),
        r"input_size=32 of mine: give channels, height and width, e.g. input_size=\(3, 224, 224\)",
    ),
    "a size without channels": (
        lambda: vitsee.Model(Net(), input_size=(32, 32)),
        r"input_size=\(32, 32\) of model: give channels, height and width",
    ),
    "no network inside": (
        lambda: vitsee.Model("resnet50"),
        "is an nn.Module or vitsee.Model.*not str",
    ),
    "a script": (
        lambda: mine(torch.jit.script(nn.Sequential(nn.ReLU()))),
        "it is TorchScript, which runs without hooks.*give the module that it was made from",
    ),
    "a script inside": (
        lambda: mine(nn.Sequential(torch.jit.script(nn.ReLU()))),
        "its 0 is TorchScript",
    ),
    "a lazy layer": (
        lambda: mine(nn.Sequential(nn.LazyConv2d(3, 3))),
        "0.weight has no shape yet; run the network once",
    ),
    "a network that fails": (
        lambda: mine(Unsteady()),
        r"on images of 3 x 32 x 32: RuntimeError: it wants; .* vitsee\.Model\(net, input_size=\(3, H, W\)\)$",
    ),
    "a network that is random": (
        lambda: mine(nn.Sequential(nn.Flatten(), Noise())),
        "returns a different output each time.*something in Sequential is random even in evaluation mode",
    ),
    "damaged weights": (
        lambda: mine(damaged()),
        "weights of mine are damaged: stem.bias contains NaN",
    ),
    "a random transform": (
        lambda: mine(transform=random_crop()),
        "returns a different result each time; use the transform for evaluation",
    ),
    "a transform to several sizes": (
        lambda: mine(transform=to_tensor(v2.Resize(16))),
        r"images of different sizes \(3 x 24 x 16 and 3 x 16 x 24\).*resize and crop",
    ),
    "a transform that fails": (
        lambda: mine(transform=lambda image: image.nothing),
        "its transform fails on an RGB PIL image .AttributeError",
    ),
    "a transform to integers": (
        lambda: mine(transform=v2.Compose([v2.Resize((8, 8)), v2.PILToTensor()])),
        r"must turn an RGB PIL image into a float tensor.*returns \(3, 8, 8\) torch.uint8",
    ),
    "a transform that squares": (
        lambda: mine(transform=to_tensor(v2.Resize((8, 8)), torch.square)),
        r"cannot tell its mean and standard deviation; give them: vitsee.Model\(…, mean=…, std=…\)",
    ),
}


def damaged() -> Net:
    net = Net()
    nn.init.constant_(net.stem.bias, torch.nan)
    return net


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)
@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_measured_is_refused_with_the_reason(name, measure):
    make, message = MISTAKES[name]
    with pytest.raises(vitsee.UserError, match=message):
        measure("analysis=cka", model=make())


def test_mean_and_deviation_may_be_given_where_they_cannot_be_measured(measure):
    transform = to_tensor(v2.Resize((8, 8)), torch.square)
    result = measure(
        "analysis=cka", model=mine(transform=transform, mean=[0] * 3, std=[1] * 3), **LAYERS
    )
    assert len(result.table) == 16


def test_a_model_s_own_transform_is_used_measured_and_shown(measure):
    norm = v2.Normalize([0.4, 0.5, 0.6], [0.1, 0.2, 0.3])
    transform = to_tensor(v2.Resize((16, 24)), norm)
    shown = measure("analysis=cka", model=mine(transform=transform), **LAYERS).made_with
    data = shown["models"]["model"]["preprocessing"]
    assert (data["input_size"], data["mean"]) == ("(3, 16, 24)", "(0.4, 0.5, 0.6)")
    assert data["std"] == "(0.1, 0.2, 0.3)"
    assert "Normalize(mean=[0.4, 0.5, 0.6]" in data["transform"]


def scaled(image: Any, by: float = 1.0) -> Tensor:
    return torch.full((3, 8, 8), by * image.getpixel((0, 0))[0] / 255)


def closed(by: float) -> Any:
    return lambda image: scaled(image, by)


class Scaling:
    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, image: Any) -> Tensor:
        return scaled(image, self.by)


def imported() -> Any:
    import torchvision.transforms.v2 as steps

    return lambda image: steps.functional.to_dtype(
        steps.functional.pil_to_tensor(image), scale=True
    )


def test_a_transform_that_encloses_a_module_is_described():
    assert described(imported()) == described(imported())


def test_a_logger_s_level_is_no_part_of_the_identity():
    log = logging.getLogger("of a transform")

    def transform(image: Any) -> Any:
        log.info("seen")
        return image

    before = as_text(transform)
    log.setLevel(logging.DEBUG)
    assert as_text(transform) == before


def test_objects_of_the_standard_library_count_by_what_they_do():
    kinds = (
        itemgetter("a"),
        itemgetter("b"),
        re.compile("a"),
        re.compile("b"),
        Path("a"),
        range(3),
    )
    assert len({as_text(kind) for kind in kinds}) == len(kinds)


def test_sets_of_functions_have_one_text():
    def text() -> str:
        def helper(x: Any) -> Any:
            return x

        functions = [lambda x, k=k: helper(x) + k for k in range(5)]
        kept.append(functions)  # so that addresses differ
        return as_text({*functions})

    kept: list[Any] = []
    assert len({text() for _ in range(40)}) == 1


def through(*steps: Any) -> Any:
    pipeline = to_tensor(*steps)
    return lambda image: pipeline(image)


class Piped:
    def __init__(self, *steps: Any) -> None:
        self.steps = to_tensor(*steps)

    def __call__(self, image: Any) -> Tensor:
        return self.steps(image)


class Settings:
    def __init__(self, scale: float) -> None:
        self.scale = scale


def halved(by: float) -> Any:
    return lambda module, args, output: by * output


def made(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(2, 2)


def changed(hook: Any = None, before: Any = None, **attributes: Any) -> nn.Module:
    """A network with hooks on it, or with attributes that were set."""
    net = Net()
    if hook:
        net.register_forward_hook(hook)
    if before:
        net.register_forward_pre_hook(before)
    for name, value in attributes.items():
        setattr(net, name, value)
    return net


def forwarded(forward: Any) -> nn.Module:
    """A network whose forward pass is this function."""
    net = Net()
    net.forward = MethodType(forward, net)
    return net


class Joined(nn.Module):
    """Adds the other tokens to the patches."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first

    def forward(self, patches: Tensor, more: Tensor) -> Tensor:
        return torch.cat([more, patches] if self.first else [patches, more], 1)


class Extra(nn.Module):
    """Patches with a class token and four registers, which come first or last."""

    def __init__(self, first: bool, inside: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = first
        self.join = Joined(first) if inside else None
        self.embed = nn.Conv2d(3, 8, 8, stride=8)
        self.cls_token = nn.Parameter(torch.randn(1, 5, 8))
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches, more = self.embed(x).flatten(2).mT, self.cls_token.expand(len(x), -1, -1)
        join = self.join or Joined(self.first)
        x = self.blocks(join(patches, more))
        return self.head(x[:, 0 if self.first else -1])


@pytest.mark.parametrize("inside", [False, True], ids=["forward", "a module"])
@pytest.mark.parametrize("first", [True, False])
def test_tokens_after_the_patches_are_not_taken_for_a_prefix(first, inside, measure):
    asked = vitsee.Model(Extra(first, inside), name="tokens", input_size=SIZE)
    net = python.found(asked, "given").net
    layer = next(x for x in residual.survey_outputs(net, SIZE) if x.name == "blocks.1")
    assert layer.shape == (21, 8)
    assert (layer.prefix, layer.grid) == ((5, (4, 4)) if first else (None, None))
    words = ["analysis=token_norm", "analysis.layers=[blocks.1]"]
    if first:
        assert len(measure(*words, model=asked).table)
    else:
        with pytest.raises(vitsee.UserError, match=r"blocks\.1"):
            measure(*words, model=asked)


OTHERS = {
    "weights": lambda: mine(Net(seed=1)),
    "a private setting": lambda: mine(Net(factor=2.0)),
    "another class of the same structure": lambda: mine(Doubled()),
    "the input size": lambda: mine(input_size=(3, 16, 16)),
    "the mean": lambda: mine(mean=[0.5] * 3, std=[1.0] * 3),
    "the deviation": lambda: mine(mean=[0.0] * 3, std=[0.5] * 3),
    "a transform": lambda: mine(transform=scaled),
    "its arguments": lambda: mine(transform=partial(scaled, by=0.5)),
    "what it encloses": lambda: mine(transform=closed(0.5)),
    "another enclosed": lambda: mine(transform=closed(0.25)),
    "what it is made of": lambda: mine(transform=Scaling(0.5)),
    "another attribute": lambda: mine(transform=Scaling(0.25)),
    "a pipeline that it encloses": lambda: mine(transform=through(v2.Resize(8), v2.CenterCrop(8))),
    "another enclosed pipeline": lambda: mine(transform=through(v2.Resize(12), v2.CenterCrop(8))),
    "a pipeline in an attribute": lambda: mine(transform=Piped(v2.Resize(8), v2.CenterCrop(8))),
    "another in an attribute": lambda: mine(transform=Piped(v2.Resize(12), v2.CenterCrop(8))),
    "the function of a library's transform": lambda: mine(
        transform=v2.Compose(
            [v2.Lambda(lambda x: x), *to_tensor(v2.Resize(8), v2.CenterCrop(8)).transforms]
        )
    ),
    "another function of it": lambda: mine(
        transform=v2.Compose(
            [v2.Lambda(lambda x: x.copy()), *to_tensor(v2.Resize(8), v2.CenterCrop(8)).transforms]
        )
    ),
    "a hook": lambda: mine(changed(hook=halved(0.5))),
    "what a hook encloses": lambda: mine(changed(hook=halved(0.25))),
    "a hook before": lambda: mine(changed(before=lambda module, args: (args[0] / 2,))),
    "a forward in place of its own": lambda: mine(
        forwarded(lambda net, x: net.head(net.stem(x).mean((2, 3))))
    ),
    "another forward": lambda: mine(forwarded(lambda net, x: net.head(net.stem(x).amax((2, 3))))),
    "an object of settings": lambda: mine(changed(settings=Settings(1.0))),
    "other settings": lambda: mine(changed(settings=Settings(2.0))),
    "an array": lambda: mine(changed(settings=np.zeros(3))),
    "another array": lambda: mine(changed(settings=np.ones(3))),
    "a network in a list": lambda: mine(changed(settings=[made(0)])),
    "another network in a list": lambda: mine(changed(settings=[made(1)])),
    "a part of a composed one": lambda: mine(transform=v2.Compose([v2.Resize(8), Scaling(0.25)])),
}


def test_whatever_can_change_a_number_changes_the_identity_and_a_name_does_not():
    same = identity(mine())
    assert identity(mine(name="another")) == same == identity(mine())
    found = {name: identity(make()) for name, make in OTHERS.items()}
    assert len({same, *found.values()}) == len(OTHERS) + 1
    again = {name: identity(make()) for name, make in OTHERS.items()}
    assert again == found


SOURCE = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.flat = nn.Flatten()
    def forward(self, x):
        return self.flat(x{change})
def make(side=32):
    import vitsee
    return vitsee.Model(Net(), name="imported", input_size=(3, side, side))
def bare():
    return Net()
def failing():
    return {{}}["x"]
def text():
    return "text"
number = 5
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module in the current folder; called again, it has another content."""
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")

    def write(change: str = "") -> str:
        sys.modules.pop("elsewhere_net", None)
        (tmp_path / "elsewhere_net.py").write_text(SOURCE.format(change=change))
        import importlib
        import linecache

        importlib.invalidate_caches()
        linecache.clearcache()
        return "elsewhere_net"

    yield write
    sys.modules.pop("elsewhere_net", None)


def test_an_edited_class_is_another_model(module, monkeypatch):
    import sys

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = []
    for change in ("", " * 2"):
        words = ("model=import", f"model.import={module(change)}:make")
        found.append(identity(None, *words))
    assert found[0] != found[1]


def test_a_function_of_one_s_own_gives_the_model(module, command, photos, tmp_path):
    name = f"{module()}:make"
    words = ["model=import", f"model.import={name}", "model.args={side: 16}", *QUIET]
    code, out, err = command(
        *("run", *words, "dataset=folder", f"dataset.root={photos}", "analysis.layers=[flat]"),
        f"run.outputs={tmp_path}",
    )
    assert code == 0, err
    made = json.loads((Path(out.splitlines()[0]).parent / "made_with.json").read_text())
    assert made["models"]["model"]["id"] == name
    assert made["models"]["model"]["preprocessing"]["input_size"] == "(3, 16, 16)"
    code, out, err = command("list", "layers", *words)
    assert "flat" in out
    assert "768" in out


UNIMPORTED = {
    "elsewhere_net": "must name a module and a function: model.import=package.module:function",
    "elsewhere_nett:make": "there is no module elsewhere_nett in the current folder "
    "or in PYTHONPATH. Did you mean elsewhere_net",
    "elsewhere_net:mak": "elsewhere_net has no mak; it has: .*make.* Did you mean make",
    "elsewhere_net:failing": r"failed: KeyError: 'x' \(.*elsewhere_net.py, line",
    "elsewhere_net:number": "number is not a function",
    "elsewhere_net:text": "elsewhere_net:text: a model is an nn.Module or vitsee.Model.*not str",
    "": r"needs model.import=package.module:function",
}


@pytest.mark.parametrize("name", UNIMPORTED)
def test_a_function_that_gives_no_model_is_refused_with_the_reason(name, module, measure):
    module()
    with pytest.raises(vitsee.UserError, match=UNIMPORTED[name]):
        measure("analysis=cka", "model=import", **{"model.import": name or None})


class Placed(nn.Module):
    """Patches with position embeddings under a short name, or without any."""

    def __init__(self, *, placed: bool = True) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 8, 8)
        if placed:
            self.pos = nn.Parameter(torch.randn(1, 16, 12))
        self.att = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).mT
        x = x + self.pos if hasattr(self, "pos") else x
        return x + self.att(x, x, x)[0]


def test_position_embeddings_are_found_by_their_length_under_any_name_of_positions(measure):
    of_positions = ["analysis=position_similarity"]
    found = measure(*of_positions, model=mine(Placed()))
    assert len(found.table) == 16**2
    with pytest.raises(vitsee.UserError, match="this Placed has none that vitsee knows"):
        measure(*of_positions, model=mine(Placed(placed=False)))


def test_a_network_for_images_of_another_size_is_told_how_to_say_so_and_the_advice_works(measure):
    with pytest.raises(
        vitsee.UserError, match=r"on images of 3 x 224 x 224.*for a different size: "
    ):
        measure("analysis=position_similarity", model=Placed())
    measure(
        "analysis=position_similarity", model=vitsee.Model(Placed(), input_size=(3, SIDE, SIDE))
    )


def test_a_bare_network_takes_images_of_224_pixels(module):
    found = loader.load(composed("model=import", f"model.import={module()}:bare").model, "cpu")
    assert found.data["input_size"] == (3, 224, 224)
    assert (found.data["mean"], found.data["std"]) == ((0.0,) * 3, (1.0,) * 3)


def test_several_processes_cannot_be_given_objects(measure):
    with pytest.raises(
        vitsee.UserError, match="model from Python cannot be given to the processes of"
    ):
        measure("analysis=cka", "run.gpus=2", model=mine())


def test_the_command_line_says_how_to_name_what_python_gives(command):
    code, _, err = command("run", "model=python", "dataset=scenes", *QUIET)
    assert code == 2
    assert "vitsee.run_experiment(model=…)" in err
    assert "model=import model.import=package.module:function" in err


def test_an_option_that_a_source_does_not_read_is_refused(command):
    code, _, err = command("run", "model=torchvision", "model.id=resnet18", "model.pool=cls")
    assert code == 2
    assert (
        "model=torchvision does not read model.pool=cls, which is for model=timm: leave it out"
        in err
    )


def test_a_misspelt_option_is_told_the_name_that_the_command_line_has(command):
    for word in ("model.imprt=a:b", "+model.imprt=a:b"):
        code, _, err = command("run", "model=import", "model.import=a:b", word)
        assert code == 2
        assert re.search(r"model has: .*, id, import, name, .* Did you mean import\?", err)


def test_two_models_of_one_name_are_told_apart_by_what_differs():
    words = (
        "model=torchvision",
        "model.id=resnet18",
        "model@other=torchvision",
        "other.id=resnet18",
    )
    found = composed(*words, "other.weights=none").names
    assert found == {"model": "resnet18-weights=DEFAULT", "other": "resnet18-weights=none"}
    drawn = composed(*words, "model.weights=none", "other.weights=none", "other.seed=1").names
    assert drawn == {"model": "resnet18-seed=0", "other": "resnet18-seed=1"}


def test_models_of_other_sources_are_not_trained(command):
    code, _, err = command("train", "recipe=vit_nano", "model=torchvision", "model.id=resnet18")
    assert code == 2
    assert "vitsee trains only timm's architectures: model=timm model.timm=NAME" in err


# ---- torch's own attention ----


class Transformer(nn.Module):
    """A ViT of torch's own modules, with a class token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        return self.encoder(torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1))


def test_the_attention_of_torch_s_own_module_is_what_it_says(measure, photos):
    net = Transformer().eval()
    names = ["encoder.layers.*.self_attn"]
    result = measure(
        *("analysis=attention_distance", "images=24"), model=mine(net), **{"analysis.layers": names}
    )
    inputs: list[Tensor] = []
    for layer in net.encoder.layers:
        layer.self_attn.register_forward_pre_hook(lambda m, args: inputs.append(args[0].double()))
    transform = timm.data.create_transform(
        SIZE, mean=(0, 0, 0), std=(1, 1, 1), crop_pct=1.0, interpolation="bicubic"
    )
    files = sorted(photos.rglob("*.png"))
    with torch.no_grad():
        net(torch.stack([transform(Image.open(file).convert("RGB")) for file in files]))
    places = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double() * 8
    between = torch.cdist(places, places)
    expected = []
    for layer, x in zip(net.encoder.layers, inputs, strict=True):
        q, k, _ = (
            part.unflatten(-1, (2, 8)).transpose(1, 2)
            for part in functional.linear(
                x, layer.self_attn.in_proj_weight.double(), layer.self_attn.in_proj_bias.double()
            ).chunk(3, -1)
        )
        weights = (q @ k.mT / 8**0.5).softmax(-1)[:, :, 1:, 1:]
        expected += (weights * between).sum(-1).mean((0, 2)).tolist()
    np.testing.assert_allclose(result.table["distance_px"], expected, rtol=1e-5)


def test_layers_inside_torch_s_own_transformer_are_measured(measure):
    wanted = "analysis.layers=[encoder.layers.*,encoder.layers.*.norm1,encoder.layers.*.linear2]"
    result = measure("analysis=cka", wanted, model=mine(Transformer()))
    assert len(result.matrix()) == 6
    assert np.isfinite(result.matrix()).all(axis=None)


# ---- torchvision ----


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """An empty cache of torch's hub, and a network without answer."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("vitsee.io.reachable._ask", lambda url, seconds: "no network")
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "torch" / "hub" / "checkpoints"


SQUEEZE = ("model=torchvision", "model.id=squeezenet1_1")


def test_weights_of_torchvision_come_from_its_cache_with_their_own_preprocessing(
    torch_home, measure, tmp_path
):
    from torchvision import models

    torch.manual_seed(7)
    weights = models.squeezenet1_1().state_dict()
    chosen = models.SqueezeNet1_1_Weights.DEFAULT
    torch.save(weights, torch_home / Path(chosen.url).name)
    result = measure(
        "analysis=cka", *SQUEEZE, "images=8", "analysis.layers=[features.3,classifier.1]"
    )
    made = result.made_with["models"]["model"]
    assert (made["source"], made["id"]) == ("torchvision", "squeezenet1_1")
    assert made["digest"] == loader.digest(weights)
    assert made["weights"] == "torchvision SqueezeNet1_1_Weights.IMAGENET1K_V1"
    data = made["preprocessing"]
    assert data["input_size"] == "(3, 224, 224)"
    assert data["mean"] == "(0.485, 0.456, 0.406)"
    assert "resize_size=[256]" in data["transform"]
    assert result.labels.model == "squeezenet1_1"


def test_weights_of_torchvision_that_are_not_there_say_what_to_do(torch_home, measure):
    with pytest.raises(vitsee.UserError) as mistake:
        measure("analysis=cka", *SQUEEZE)
    assert "must be downloaded, but download.pytorch.org cannot be reached (no network)" in str(
        mistake.value
    )
    assert "set TORCH_HOME" in str(mistake.value)
    assert "model.weights=none" in str(mistake.value)
    advised = loader.load(composed(*SQUEEZE, "model.weights=none").model, "cpu")
    assert advised.label == "squeezenet1_1 (random weights)"


def test_random_weights_of_torchvision_depend_on_the_seed_and_files_are_read(tmp_path):
    def load(*more: str) -> loader.Loaded:
        return loader.load(composed(*SQUEEZE, "model.args={num_classes: 3}", *more).model, "cpu")

    one, same, other = (load("model.weights=none", f"model.seed={seed}") for seed in (0, 0, 1))
    assert one.digest == same.digest != other.digest
    torch.save({"state_dict": other.net.state_dict()}, tmp_path / "mine.ckpt")
    read = load(f"model.checkpoint={tmp_path}/mine.ckpt")
    assert read.digest == other.digest
    assert read.label == "squeezenet1_1"


UNKNOWN = {
    "model.id=squeezenet1_2": "torchvision has no model 'squeezenet1_2'.* Did you mean squeezenet1_1",
    "model.weights=IMAGENET1K_V3": "no weights 'IMAGENET1K_V3' for squeezenet1_1; model.weights can be:"
    " DEFAULT, IMAGENET1K_V1, none. Did you mean IMAGENET1K_V1",
    "model.args={wide: 5}": r"with model.args=\{'wide': 5\} cannot be built: TypeError.*wide",
    "model.id=null": "needs model.id=resnet50 .`vitsee list models model=torchvision`",
}


@pytest.mark.parametrize("change", UNKNOWN)
def test_what_torchvision_does_not_have_is_refused_with_what_it_has(change):
    words = [*SQUEEZE, "model.weights=none"]
    words = [word for word in words if not word.startswith(change.partition("=")[0])]
    with pytest.raises(vitsee.UserError, match=UNKNOWN[change]):
        loader.load(composed(*words, change).model, "cpu")


def test_what_libraries_have_is_listed_by_pattern(command):
    code, out, _ = command("list", "models", "model=torchvision", "model.id=resnet*")
    assert code == 0
    assert re.search(r"^resnet50 +IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT$", out, flags=re.MULTILINE)
    assert "squeezenet" not in out
    code, out, _ = command("list", "models", "model=timm", "model.timm=vit_tiny_patch16_224")
    assert re.search(r"^vit_tiny_patch16_224 +augreg_in21k, ", out, flags=re.MULTILINE)
    code, _, err = command("list", "models", "model=torchvision", "model.id=resnt50")
    assert code == 2
    assert "Did you mean resnet50?" in err
    code, _, err = command("list", "models", "model=torchvisoin")
    assert (
        "model can be: open_clip, timm, torchvision, transformers. Did you mean torchvision?" in err
    )
    code, _, err = command("list", "models", "model=timm", "seed=1")
    assert "seed is not a pattern; e.g. model=timm model.timm='vit_*'" in err


# ---- the same weights through two libraries ----

SMALL = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
DATA = {"input_size": list(SIZE), "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
HUGGING = {
    **{"image_size": SIDE, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "layer_norm_eps": 1e-6},
}


def of_timm(name: str, **args: Any) -> dict[str, Any]:
    """The options of a small ViT of timm with random weights."""
    options = {"timm": name, "pretrained": False, "overlay": DATA | {"interpolation": "bicubic"}}
    return options | {"args": SMALL | {"num_classes": 0} | args}


def built(options: dict[str, Any]) -> nn.Module:
    return timm_architecture.build(ModelOptions(name="m", **options)).requires_grad_(False)


def copied(theirs: nn.Module, ours: nn.Module, names: dict[str, str]) -> None:
    """Copy timm's weights into another library's network. names: timm's by theirs; {} is the number of a block.

    `attn.qkv#1` is the second third of these rows: the keys.
    """
    state, own = theirs.state_dict(), ours.state_dict()
    for index in range(len(ours.blocks)):
        for their, our in names.items():
            if "{}" not in their and index:
                continue
            source, _, third = our.partition("#")
            for kind in ("weight", "bias"):
                value = own[f"{source.format(index)}.{kind}"]
                state[f"{their.format(index)}.{kind}"].copy_(
                    value.chunk(3)[int(third)] if third else value
                )


BLOCK = {
    "{}.attention.q_proj": "blocks.{}.attn.qkv#0",
    "{}.attention.k_proj": "blocks.{}.attn.qkv#1",
    "{}.attention.v_proj": "blocks.{}.attn.qkv#2",
    "{}.attention.o_proj": "blocks.{}.attn.proj",
    "{}.mlp.fc1": "blocks.{}.mlp.fc1",
    "{}.mlp.fc2": "blocks.{}.mlp.fc2",
}
ALONE = {"embeddings.patch_embeddings.projection": "patch_embed.proj", "layernorm": "norm"}


def saved(net: nn.Module, folder: Path) -> Path:
    """A folder with a model of transformers, and the image processor that does what DATA says."""
    import transformers

    net.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def hugging_vit(folder: Path) -> tuple[dict[str, Any], list[str], str]:
    import transformers

    options = of_timm("vit_tiny_patch16_224")
    ours = built(options)
    theirs = transformers.ViTModel(
        transformers.ViTConfig(**HUGGING, intermediate_size=128), add_pooling_layer=False
    ).requires_grad_(False)
    names = {f"layers.{their}": our for their, our in BLOCK.items()} | ALONE
    names |= {"layers.{}.layernorm_before": "blocks.{}.norm1"}
    names |= {"layers.{}.layernorm_after": "blocks.{}.norm2"}
    copied(theirs, ours, names)
    theirs.embeddings.cls_token.copy_(ours.cls_token)
    theirs.embeddings.position_embeddings.copy_(ours.pos_embed)
    place = saved(theirs, folder / "vit")
    return options, ["model=transformers", f"model.id={place}"], "layers.{}"


def hugging_dino(folder: Path) -> tuple[dict[str, Any], list[str], str]:
    import transformers

    options = of_timm("vit_small_patch14_reg4_dinov2", init_values=0.5)
    ours = built(options)
    config = transformers.Dinov2WithRegistersConfig(
        **HUGGING, num_register_tokens=4, layerscale_value=0.5
    )
    theirs = transformers.Dinov2WithRegistersModel(config).requires_grad_(False)
    names = {f"encoder.layer.{their}": our for their, our in BLOCK.items()} | ALONE
    names |= {f"encoder.layer.{{}}.norm{i}": f"blocks.{{}}.norm{i}" for i in (1, 2)}
    copied(theirs, ours, names)
    within = theirs.embeddings
    within.cls_token.copy_(ours.cls_token)
    within.register_tokens.copy_(ours.reg_token)
    within.position_embeddings[:, :1] = 0  # timm's class token has none
    within.position_embeddings[:, 1:] = ours.pos_embed
    place = saved(theirs, folder / "dino")
    return options, ["model=transformers", f"model.id={place}"], "encoder.layer.{}"


CLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": SIDE,
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {"context_length": 4, "vocab_size": 9, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"size": SIDE, "mean": [0.5] * 3, "std": [0.5] * 3},
}


def open_clip_folder(folder: Path) -> Path:
    """A folder with a small model of open_clip with random weights."""
    import open_clip

    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(CLIP))
    torch.manual_seed(0)
    net = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    torch.save(net.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


def open_clip_tower(folder: Path) -> tuple[dict[str, Any], list[str], str]:
    place = open_clip_folder(folder / "clip")
    weights = {"checkpoint": f"{place}/open_clip_pytorch_model.bin", "pretrained": True}
    options = of_timm("vit_base_patch32_clip_224", num_classes=16) | weights
    return options, ["model=open_clip", f"model.id={place}"], "transformer.resblocks.{}"


PAIRS = {"vit": hugging_vit, "dino": hugging_dino, "clip": open_clip_tower}
ANALYSES = {
    "cka": ["images=24", "analysis.tokens=all"],
    "attention_distance": ["images=24"],
    "linear_probe": [
        *("analysis.train_split=null", "analysis.shots=3", "analysis.held_out=2"),
        *("analysis.features=[cls,gap_patches]", "analysis.seeds=[0]"),
    ],
}


@pytest.fixture(scope="module")
def through_two(photos, tmp_path_factory):
    """The tables of each analysis of the same weights through timm and through another library."""

    def tables(make: Any) -> dict[str, list[vitsee.Result]]:
        folder = tmp_path_factory.mktemp("pair")
        options, words, unit = make(folder)
        attention = {"vit": ".attention", "dino": ".attention", "clip": ".attn"}
        part = next(part for name, part in attention.items() if PAIRS[name] is make)
        found = {}
        for analysis, more in ANALYSES.items():
            within = {"cka": ["", ".attn", ".mlp"], "linear_probe": [""]}.get(analysis, [".attn"])
            ours = ",".join(f"blocks.*{one}" for one in within)
            theirs = ",".join(unit.format("*") + one.replace(".attn", part) for one in within)
            both = []
            for asked, layers in ((["model=timm"], ours), (words, theirs)):
                named = {"model": options} if asked == ["model=timm"] else {}
                both.append(
                    vitsee.run_experiment(
                        *(
                            *QUIET,
                            f"analysis={analysis}",
                            *more,
                            *asked,
                            f"analysis.layers=[{layers}]",
                        ),
                        *("dataset=folder", f"dataset.root={photos}", f"run.outputs={folder}/out"),
                        **named,
                    )
                )
            found[analysis] = both
        return found

    return cache(tables)


@elsewhere
@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("pair", PAIRS)
def test_the_same_weights_give_the_same_through_timm_and_through_another_library(
    pair, analysis, through_two, undrawn
):
    ours, theirs = through_two(PAIRS[pair])[analysis]
    assert ours.path != theirs.path
    (column,) = {"cka", "distance_px", "accuracy"} & set(ours.table)
    np.testing.assert_allclose(theirs.table[column], ours.table[column], atol=1e-6, rtol=1e-6)
    assert ours.table[column].nunique() > 1


# ---- transformers ----


TEXT = {
    **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 32, "vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1},
}


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Folders with small models of transformers, by name."""
    import transformers as hf

    small = {k: v for k, v in HUGGING.items() if k != "layer_norm_eps"} | {"intermediate_size": 64}
    both = {"vision_config": small, "text_config": TEXT}
    made = {
        "classifier": lambda: hf.ViTForImageClassification(hf.ViTConfig(**small, num_labels=3)),
        "CLIP": lambda: hf.CLIPModel(hf.CLIPConfig(**both)),
        "SigLIP": lambda: hf.SiglipModel(hf.SiglipConfig(**both)),
        "BEiT": lambda: hf.BeitModel(hf.BeitConfig(**small)),
        "BEiT of patches": lambda: hf.BeitForImageClassification(hf.BeitConfig(**small)),
        "BEiT of a token": lambda: hf.BeitForImageClassification(
            hf.BeitConfig(**small, use_mean_pooling=False)
        ),
        "Swin": lambda: hf.SwinModel(
            hf.SwinConfig(
                **{"image_size": SIDE, "patch_size": 4, "embed_dim": 16, "window_size": 4},
                **{"depths": [1, 1], "num_heads": [1, 2]},
            )
        ),
        "ConvNeXt": lambda: hf.ConvNextModel(
            hf.ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], image_size=SIDE)
        ),
    }
    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    return {name: saved(make(), folder / name) for name, make in made.items()}


def of_transformers(place: object, *more: str) -> ModelOptions:
    return composed("model=transformers", f"model.id={place}", *more).model


TOKENS = {
    "classifier": ("vit.layers.1", 1, True, (4, 4)),
    "CLIP": ("encoder.layers.1", 1, True, (4, 4)),
    "SigLIP": ("encoder.layers.1", 0, False, (4, 4)),
    "BEiT": ("layers.1", 1, True, (4, 4)),
    "ConvNeXt": ("encoder.stages.1", None, False, (4, 4)),
}


@elsewhere
@pytest.mark.parametrize("name", TOKENS)
def test_an_image_tower_of_transformers_is_loaded_with_its_tokens(name, towers):
    from vitsee.models.taps import SURVEY

    found = loader.load(of_transformers(towers[name]), "cpu")
    assert found.label == name
    assert found.data["input_size"] == SIZE
    assert found.data["mean"] == (0.5, 0.5, 0.5)
    layers = {layer.name: layer for layer in SURVEY["outputs"](found.net, SIZE)}
    place, prefix, class_token, grid = TOKENS[name]
    layer = layers[place]
    assert (layer.prefix, layer.class_token, layer.grid) == (prefix, class_token, grid)


@elsewhere
@pytest.mark.parametrize(
    ("name", "reads"),
    [("classifier", True), ("CLIP", True), ("BEiT of patches", False), ("BEiT of a token", True)],
)
def test_whether_the_head_reads_the_class_token_is_measured(name, reads, towers):
    from vitsee.models.taps import SURVEY

    net = loader.load(of_transformers(towers[name]), "cpu").net
    layer = SURVEY["attention"](net, SIZE)[-1]
    assert (layer.class_token, layer.reads_class) == (True, reads)


class Tokens(nn.Module):
    """A small ViT of one's own, whose head reads the class token, or the mean of the patches."""

    def __init__(self, *, mean: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 3)
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = self.block(torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1))
        return self.head(x[:, 1:].mean(1) if self.mean else x[:, 0])


@pytest.mark.parametrize("mean", [False, True])
def test_rollout_through_a_network_of_one_s_own_starts_where_its_head_reads(mean, measure):
    torch.manual_seed(0)
    net = Tokens(mean=mean).train()
    result = measure("analysis=attention_rollout", images=2, model=mine(net))
    assert net.training
    total = result.tables["attention_rollout"].groupby("image")["weight"].sum()
    assert ((total > 0.5) == mean).all()  # (A + I) / 2: where it starts, it keeps more than half


class Aside(Tokens):
    """Its tokens are computed, and do not reach its output."""

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        return x.mean((2, 3))


def test_a_network_whose_output_does_not_depend_on_its_tokens_is_loaded(measure):
    net = Aside(mean=True)
    assert len(measure("analysis=attention_distance", images=2, model=mine(net)).tables) == 1


@elsewhere
def test_the_attention_by_which_a_tower_s_head_reads_its_tokens_is_found(towers):
    from vitsee.models.taps import SURVEY

    found = loader.load(of_transformers(towers["SigLIP"]), "cpu")
    layers = SURVEY["attention and pooling"](found.net, SIZE)
    assert [layer.name for layer in layers] == [
        *(f"encoder.layers.{i}.self_attn" for i in range(2)),
        "head.attention",
    ]
    assert {layer.pooling for layer in layers} == {"head.attention"}


@elsewhere
def test_the_image_processor_is_used_and_shown(towers, measure):
    words = [
        "model=transformers",
        f"model.id={towers['classifier']}",
        "analysis.layers=[classifier]",
    ]
    made = measure("analysis=cka", *words).made_with
    shown = made["models"]["model"]["preprocessing"]["transform"]
    assert "ViTImageProcessor" in shown
    assert '"image_mean": [ 0.5, 0.5, 0.5 ]' in shown
    assert made["models"]["model"]["id"] == str(towers["classifier"])
    assert made["versions"]["transformers"] != "not installed"


@elsewhere
def test_a_setting_that_modules_do_not_show_changes_the_identity(towers):
    words = ["model=transformers", f"model.id={towers['Swin']}", "analysis.layers=[layernorm]"]
    assert identity(None, *words) == identity(None, *words)
    assert identity(None, *words, "model.args={hidden_act: relu}") != identity(None, *words)


@elsewhere
def test_random_weights_of_transformers_are_drawn_with_the_seed(towers):
    one, same, other, trained = (
        loader.load(of_transformers(towers["BEiT"], *more), "cpu")
        for more in (
            *(["model.pretrained=false", f"model.seed={seed}"] for seed in (0, 0, 1)),
            [],
        )
    )
    assert one.digest == same.digest
    assert len({one.digest, other.digest, trained.digest}) == 3
    assert one.label == "BEiT (random weights)"


def break_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("layernorm.weight" if "layernorm.weight" in weights else next(iter(weights)))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


BROKEN = {
    "no folder": (lambda folder: f"{folder}/nothing", "there is no such folder"),
    "an empty one": (
        lambda folder: (folder / "config.json").unlink(),
        "there is no config.json in it; save_pretrained writes such folders",
    ),
    "no processor": (
        lambda folder: [path.unlink() for path in folder.glob("*processor_config.json")],
        r"how its images are preprocessed is unknown.*save one there: transformers.ViTImageProcessor",
    ),
    "a missing weight": (
        break_weights,
        "lacks weights of its ViTForImageClassification, which would be random: ",
    ),
    "damaged weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"cut"),
        "cannot be built: ",
    ),
    "another kind of model": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
        "BertConfig, which transformers does not list as an image model",
    ),
    "an unknown kind of model": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "vitt"}'),
        "cannot be built: ValueError",
    ),
}


@elsewhere
@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_is_no_image_model_of_transformers_is_refused(name, towers, tmp_path):
    import shutil

    folder = shutil.copytree(towers["classifier"], tmp_path / "copy")
    change, message = BROKEN[name]
    place = change(folder)
    with pytest.raises(vitsee.UserError, match=message):
        loader.load(of_transformers(place if isinstance(place, str) else folder), "cpu")


@elsewhere
def test_a_wrong_setting_is_refused(towers):
    with pytest.raises(vitsee.UserError, match="its ViTConfig has no setting hidden_akt"):
        loader.load(of_transformers(towers["classifier"], "model.args={hidden_akt: relu}"), "cpu")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty cache of the Hugging Face hub, and a network without answer."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("vitsee.io.reachable._ask", lambda url, seconds: "no network")
    return tmp_path / "hub"


def in_cache(hub: Path, repository: str, folder: Path) -> None:
    """Put the files of a folder into a cache of the hub, as if they had been downloaded."""
    import shutil

    place = hub / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")


@elsewhere
def test_what_is_not_in_the_hub_s_cache_says_what_to_do(offline, towers):
    with pytest.raises(vitsee.UserError) as mistake:
        loader.load(of_transformers("owner/name"), "cpu")
    assert "model.id=owner/name must be downloaded, but huggingface.co cannot" in str(mistake.value)
    assert "(no network); download it on a machine with network access and set HF_HUB_CACHE" in str(
        mistake.value
    )
    in_cache(offline, "owner/name", towers["BEiT"])
    found = loader.load(of_transformers("owner/name"), "cpu")
    assert found.digest == loader.load(of_transformers(towers["BEiT"]), "cpu").digest
    assert found.name == "owner/name"


@elsewhere
@pytest.mark.parametrize("extra", ["transformers", "open_clip"])
def test_an_extra_that_is_not_installed_is_named(extra, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, extra, None)
    named = extra.replace("_", "-")
    with pytest.raises(vitsee.UserError, match=rf"pip install 'vitsee\[{named}\]'"):
        loader.load(composed(f"model={extra}", "model.id=ViT-B-32").model, "cpu")


# ---- open_clip ----


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder with a small model of open_clip."""
    return open_clip_folder(tmp_path_factory.mktemp("open_clip") / "small")


def of_open_clip(place: object, *more: str) -> ModelOptions:
    return composed("model=open_clip", f"model.id={place}", *more).model


@elsewhere
def test_the_image_tower_of_open_clip_is_loaded_with_its_preprocessing(clip, measure):
    result = measure(
        *("analysis=cka", "model=open_clip", f"model.id={clip}", "analysis.layers=[ln_post]")
    )
    made = result.made_with["models"]["model"]
    assert made["source"] == "open_clip"
    assert made["preprocessing"]["input_size"] == "(3, 32, 32)"
    assert "Normalize" in made["preprocessing"]["transform"]
    assert result.labels.model == "small"


@elsewhere
def test_random_weights_of_open_clip_are_drawn_with_the_seed(clip):
    one, same, other, trained = (
        loader.load(of_open_clip(clip, *more), "cpu")
        for more in (
            *(["model.weights=none", f"model.seed={seed}"] for seed in (0, 0, 1)),
            ["model.seed=0"],
        )
    )
    assert one.digest == same.digest != other.digest
    assert one.label == "small (random weights)"
    assert trained.label == "small"


@elsewhere
def test_weights_of_open_clip_are_found_in_the_hub_s_cache(clip, offline, tmp_path):
    place = "hf-hub:owner/clip"
    with pytest.raises(vitsee.UserError, match=r"must be downloaded, but huggingface\.co"):
        loader.load(of_open_clip(place), "cpu")
    in_cache(offline, "owner/clip", clip)
    assert (
        loader.load(of_open_clip(place), "cpu").digest
        == loader.load(of_open_clip(clip), "cpu").digest
    )


UNCLIPPED = {
    "ViT-B-33": (
        ["model.weights=none"],
        "open_clip has no model 'ViT-B-33'.*Did you mean ViT-B-32",
    ),
    "ViT-B-32": ([], "needs model.weights=TAG; available: openai, laion400m_e31"),
    "ViT-B-16": (
        ["model.weights=openaj"],
        "has no model.weights=openaj; it can be a file, or: .*openai",
    ),
    "ViT-B-32-256": (
        ["model.weights=datacomp_s34b_b86k"],
        r"must be downloaded, but huggingface.co cannot be reached.*model.weights=PATH",
    ),
}


@elsewhere
@pytest.mark.parametrize("name", UNCLIPPED)
def test_what_open_clip_does_not_have_is_refused_with_what_it_has(name, offline):
    more, message = UNCLIPPED[name]
    with pytest.raises(vitsee.UserError, match=message):
        loader.load(of_open_clip(name, *more), "cpu")


@elsewhere
@pytest.mark.parametrize(("tag", "kind"), [("openai", "QuickGELU"), ("laion2b_e16", "GELU")])
def test_weights_of_open_clip_run_with_the_activation_that_they_were_trained_with(
    tag, kind, monkeypatch, clip, tmp_path
):
    import open_clip

    weights = tmp_path / "weights.pt"
    torch.save(torch.load(clip / "open_clip_pytorch_model.bin"), weights)
    monkeypatch.setattr("vitsee.models.sources.open_clip._file", lambda *asked: weights)
    small = {
        key: dict(value) if isinstance(value, dict) else value
        for key, value in CLIP["model_cfg"].items()
    }
    monkeypatch.setattr(open_clip.factory, "get_model_config", lambda name: small)
    found = loader.load(of_open_clip("ViT-B-32", f"model.weights={tag}"), "cpu")
    assert type(found.net.transformer.resblocks[0].mlp.gelu).__name__ == kind
    assert found.data["mean"][0] == pytest.approx(0.48145466)


@elsewhere
def test_a_folder_without_weights_is_refused_and_random_ones_are_asked_for(clip, tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps(CLIP))
    with pytest.raises(
        vitsee.UserError, match=r"no weights in .*; use random weights with model.weights"
    ):
        loader.load(of_open_clip(tmp_path), "cpu")
    assert loader.load(of_open_clip(tmp_path, "model.weights=none"), "cpu").label.endswith(
        "weights)"
    )
    with pytest.raises(
        vitsee.UserError, match="a folder has its own weights; leave this option out"
    ):
        loader.load(of_open_clip(clip, "model.weights=openai"), "cpu")


@elsewhere
def test_extras_are_listed(command):
    _, out, _ = command("list", "models", "model=open_clip", "model.id=ViT-B-32")
    assert re.search(r"^ViT-B-32 +openai, laion400m_e31", out, flags=re.MULTILINE)
    _, out, _ = command("list", "models", "model=transformers", "model.id=dinov2*")
    assert re.search("^dinov2 .*saved from Dinov2Model", out, flags=re.MULTILINE)
