"""Tries every analysis on models of all timm modules, and writes the table of docs/models.md.

Without options, models are built on the meta device, where nothing is computed: layers are surveyed, selected and
checked as in a run before it reads any image. With --run, every analysis measures 8 images with one small model
per module.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import vitsee
import vitsee.analyses
from vitsee.analysis import REGISTERED
from vitsee.config import override
from vitsee.errors import UserError
from vitsee.models import layers, presets, timm_architecture
from vitsee.models.taps import SURVEY
from vitsee.options import ModelOptions
from vitsee.setting import Layer

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- families: written by scripts/families.py -->", "<!-- end of families -->"

ANALYSES = (
    *("cka", "localization", "linear_probe", "receptive_field", "skip_ratio"),
    *("attention_distance", "attention_rollout"),
)

MODELS = """
beit: beit_base_patch16_224
byoanet: botnet26t_256 eca_halonext26ts sehalonet33ts lambda_resnet26t
byobnet: test_byobnet bat_resnext26ts repvgg_a0 mobileone_s0 resnet50_clip gernet_s
cait: cait_xxs24_224
coat: coat_lite_tiny coat_tiny
convit: convit_tiny
convmixer: convmixer_1024_20_ks9_p14 convmixer_768_32
convnext: convnext_atto test_convnext convnextv2_atto
cpubone: cpubone_b0_bfrobust
crossvit: crossvit_9_240
csatv2: csatv2
cspnet: cs3darknet_focus_s cspresnet50
cspnext: cspnext_tiny
davit: davit_tiny
deepseek_vit: deepseek_vit_412m
deit: deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224
densenet: densenet121
dla: dla34 dla60_res2net
dpn: dpn48b
edgenext: edgenext_xx_small
efficientformer: efficientformer_l1
efficientformer_v2: efficientformerv2_s0
efficientnet: test_efficientnet efficientnet_b0 efficientnet_es mobilenetv2_050 mnasnet_small mixnet_s
efficientvim: efficientvim_m1
efficientvit_mit: efficientvit_b0
efficientvit_msra: efficientvit_m0
eva: eva02_tiny_patch14_224 vit_small_patch16_dinov3 vit_small_patch16_rope_224 vit_medium_patch16_rope_reg1_gap_256
fasternet: fasternet_t0
fastvit: fastvit_t8 fastvit_sa12
focalnet: focalnet_tiny_srf
gcvit: gcvit_xxtiny
gemma4_vit: gemma4_vit_167m
ghostnet: ghostnet_050 ghostnetv2_100
hardcorenas: hardcorenas_a
hgnet: hgnetv2_b0
hiera: hiera_tiny_224 hiera_small_abswin_256
hieradet_sam2: sam2_hiera_tiny
hrnet: hrnet_w18_small
iformer: iformer_t
inception_next: inception_next_atto
inception_resnet_v2: inception_resnet_v2
inception_v3: inception_v3
inception_v4: inception_v4
lcnetv2: lcnetv2_small
levit: levit_128s
lowformer: lowformer_b0
mambaout: test_mambaout
maxxvit: test_maxvit coatnet_nano_rw_224 coatnext_nano_rw_224 maxxvit_rmlp_nano_rw_256
metaformer: poolformer_s12 poolformerv2_s12 convformer_s18 caformer_s18
mlp_mixer: mixer_s32_224 gmixer_12_224 gmlp_ti16_224 resmlp_12_224
mobilenetv3: mobilenetv3_small_050 lcnet_035 fbnetv3_b mobilenetv4_conv_small_035 mobilenetv4_hybrid_medium
mobilenetv5: mobilenetv5_base
mobilevit: mobilevit_xxs mobilevitv2_050
mvitv2: mvitv2_tiny mvitv2_base_cls
naflexvit: naflexvit_base_patch16_gap naflexvit_base_patch16_siglip
nasnet: nasnetalarge
nest: nest_tiny
nextvit: nextvit_small
nfnet: test_nfnet nf_resnet26 nf_regnet_b0
pit: pit_ti_224 pit_ti_distilled_224
pnasnet: pnasnet5large
pvt_v2: pvt_v2_b0 pvt_v2_b2_li
qwen3_vit: qwen3_vit_88m
rdnet: rdnet_tiny
regnet: regnetx_002 regnety_002 regnetz_005
repghost: repghostnet_050
repvit: repvit_m0_9
res2net: res2net50_14w_8s
resnest: resnest14d
resnet: test_resnet resnet18 resnet50 resnet50_gn seresnet18
resnetv2: resnetv2_18 resnetv2_50x1_bit
rexnet: rexnet_100
selecsls: selecsls42
senet: legacy_seresnet18
sequencer: sequencer2d_s
shvit: shvit_s1
sknet: skresnet18
starnet: starnet_s050
swiftformer: swiftformer_xs
swin_transformer: swin_tiny_patch4_window7_224 swin_s3_tiny_224
swin_transformer_v2: swinv2_tiny_window8_256
swin_transformer_v2_cr: swinv2_cr_tiny_224 swinv2_cr_tiny_ns_224
tiny_vit: tiny_vit_5m_224
tnt: tnt_s_patch16_224
tresnet: tresnet_m
twins: twins_svt_small twins_pcpvt_small
vgg: vgg11 vgg11_bn
visformer: visformer_tiny
vision_transformer: test_vit vit_tiny_patch16_224 vit_base_patch32_clip_224 vit_medium_patch16_gap_240
vision_transformer: vit_base_patch16_siglip_224 vit_small_patch14_reg4_dinov2
vision_transformer: vit_base_patch16_rpn_224 flexivit_small aimv2_1b_patch14_224
vision_transformer_hybrid: vit_tiny_r_s16_p8_224 vit_small_r26_s32_224
vision_transformer_relpos: test_vit_relpos vit_relpos_medium_patch16_cls_224
vision_transformer_sam: samvit_base_patch16_224
vitamin: vitamin_small_224
volo: volo_d1_224
vovnet: ese_vovnet19b_slim_dw
xception: legacy_xception
xception_aligned: xception41
xcit: xcit_nano_12_p16_224
"""
"""Small models of each timm module: one, or several if their blocks differ."""

SIDES = (64, 84, 96, 128, 160)
"""Image sizes to try for a run, smallest first."""

NEEDS = {
    "linear_probe": ["analysis.train_split=null", "analysis.shots=1", "analysis.held_out=1"],
    "receptive_field": ["analysis.channels=1"],
}
"""Further options that a run with 8 images needs."""

REASONS = {
    "no skip connections (nothing is added to its own input)": "no skip connections",
    "no attention": "none of its modules computes attention",
    "attention by a formula other than softmax over tokens": "by their own formula",
    "attention among channels": "attends among",
    "fewer keys than queries, or queries of the class token only": "attends from",
    "several attentions whose weights are combined": "combines their weights",
    "windows or blocks of tokens": "windows",
    "stages or blocks with different tokens": "attend among different tokens",
    "tokens that are not in rows and columns": "no rows and columns|have no rows|neither a sequence",
}
"""Why an analysis refuses a model, and the words of its message that identify the reason."""


def representatives() -> dict[str, list[str]]:
    """Return the models of each module."""
    found: dict[str, list[str]] = {}
    for line in MODELS.strip().splitlines():
        module, names = line.split(": ")
        found.setdefault(module, []).extend(names.split())
    return found


def verdicts(name: str, **options: dict[str, Any]) -> dict[str, str]:
    """Return why a run of each analysis with its default layers would be refused; "" if it would not.

    options: `args` and `overlay` of the model. Raises UserError if the model cannot be built with them,
    AssertionError for an empty preset, and any error that is not meant for users.
    """
    net = timm_architecture.skeleton(ModelOptions(name=name, timm=name, **options)).eval()
    size = tuple(timm_architecture.data_config(net)["input_size"])
    once = cache(layers.survey)
    surveyed: dict[str, list[Layer] | UserError] = {}
    with mock.patch.object(layers, "survey", once):  # other surveys start from this one
        for kind, survey in SURVEY.items():
            try:
                surveyed[kind] = survey(net, size)
            except UserError as error:
                surveyed[kind] = error
    outputs = surveyed["outputs"]
    if isinstance(outputs, UserError):
        raise outputs
    for preset in ("paper", "four", "blocks", "last", "last_stage", "low"):
        assert presets.preset(net, outputs, preset), f"{name}: preset {preset} is empty"
    said = {}
    for analysis in (REGISTERED[each]() for each in ANALYSES):
        found = surveyed[analysis.reads_of("model")]
        try:
            if isinstance(found, UserError):
                raise found
            analysis.check({"model": presets.choose(net, found, analysis.patterns("model"))})
            said[analysis.name] = ""
        except UserError as error:
            said[analysis.name] = str(error)
    return said


def reason(message: str) -> str:
    """Return the reason in a message as one of REASONS. Raises ValueError if it is none of them."""
    for why, words in REASONS.items():
        if re.search(words, message):
            return why
    raise ValueError(f"a refusal of no known kind: {message}")


def table(said: dict[str, dict[str, str]]) -> str:
    """Return the table of modules and analyses, with the reasons and counts below it. said: verdicts by model."""
    letters = {why: chr(ord("a") + i) for i, why in enumerate(REASONS)}
    lines = [f"| module of timm | {' | '.join(ANALYSES)} |", "|---|" + "---|" * len(ANALYSES)]
    for module, names in representatives().items():
        cells = []
        for analysis in ANALYSES:
            refused = [reason(said[name][analysis]) for name in names if said[name][analysis]]
            why = "".join(sorted({letters[each] for each in refused}))
            some = f"{len(names) - len(refused)} of {len(names)}, " if refused else "yes"
            cells.append(why if len(refused) == len(names) else some + why)
        lines.append(f"| {module} | {' | '.join(cells)} |")
    works = Counter(a for of in said.values() for a, message in of.items() if not message)
    lines.append(f"| **of {len(said)} models** | {' | '.join(str(works[a]) for a in ANALYSES)} |")
    reasons = "; ".join(f"{letter}: {why}" for why, letter in letters.items())
    return "\n".join([*lines, "", f"Refused, with the reason in the message: {reasons}."])


def smallest(name: str, reasons: dict[str, str]) -> list[str]:
    """Return the options of a run with the smallest images at which each analysis works, or is refused, as usual.

    reasons: why analyses refuse the model at its own size.
    """
    for side in SIDES:
        size = {"overlay": {"input_size": [3, side, side]}}
        for args in ({"img_size": side, "depth": 3}, {"img_size": side}, {}):
            options = size | ({"args": args} if args else {})
            with contextlib.suppress(UserError, AssertionError):
                said = verdicts(name, **options).items()
                if reasons == {analysis: why and reason(why) for analysis, why in said}:
                    return [override(f"model.{key}", value) for key, value in options.items()]
    return []


def run(module: str, draw: bool = True) -> list[str]:
    """Measure 8 images with each analysis and the first model of a module. Return one line per analysis.

    The line says WRONG for a traceback, a refusal that `verdicts` does not predict, or non-finite values without a
    warning.
    """
    name, lines = representatives()[module][0], []
    torch.set_num_threads(1)
    reasons = {analysis: why and reason(why) for analysis, why in verdicts(name).items()}
    size = smallest(name, reasons)
    words = ["model=timm", f"model.timm={name}", "model.pretrained=false", *size]
    words += ["dataset=scenes", "images=8", "batch_size=4"]
    words += ["run.workers=0", "run.progress=false", "run.device=cpu"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(SURVEY, {k: once(find) for k, find in SURVEY.items()}))
        if not draw:
            stack.enter_context(mock.patch("vitsee.runner.draw", return_value=[]))
        for analysis in ANALYSES:
            begun = time.perf_counter()
            try:
                said, why = outcome([*words, f"analysis={analysis}", *NEEDS.get(analysis, [])])
                if why != reasons[analysis]:
                    said += f": WRONG, as it should be {reasons[analysis] or 'ok'}"
            except Exception:
                said = f"WRONG\n{traceback.format_exc()}"
            seconds = time.perf_counter() - begun
            lines.append(f"{module} {name} {' '.join(size)} {analysis} ({seconds:.0f} s): {said}")
    return lines


def once(survey: Callable[..., list[Layer]]) -> Callable[..., list[Layer]]:
    """Return the survey, cached after its first call: all runs use the same model."""
    found: list[list[Layer]] = []

    def look(*model: Any) -> list[Layer]:
        found[:] = found or [survey(*model)]
        return list(found[0])

    return look


def outcome(words: list[str]) -> tuple[str, str]:
    """Run this experiment. Return a summary with its warnings, and why it was refused ("" if it was not).

    Raises AssertionError for non-finite values without a warning.
    """
    silent = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        try:
            with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
                result = vitsee.run_experiment(*words, f"run.outputs={folder}")
        except UserError as error:
            why = reason(str(error))
            return f"refused: {why}", why
    declared = REGISTERED[result.analysis].columns
    values = [
        table[column].to_numpy(float)
        for of, table in result.tables.items()
        for column, kind in declared[of].columns.items()
        if kind is float
    ]
    assert all(len(column) for column in values), "an empty table"
    warned = result.made_with["warnings"]
    finite = all(np.isfinite(column).all() for column in values)
    assert finite or warned, "values that are not finite, without a warning"
    return "; ".join(["ok", *(f"warned that {one}" for one in warned[:1])]), ""


def measure_all(modules: list[str], processes: int, draw: bool) -> None:
    """Run each of these modules and print the outcome. Exit with 1 if any went wrong."""
    wrong = []
    with Pool(processes, maxtasksperchild=1) as pool:
        for lines in pool.imap(partial(run, draw=draw), modules):
            print("\n".join(lines), flush=True)
            wrong += [line.split("\n")[0] for line in lines if ": WRONG" in line]
    if wrong:
        sys.exit("\n".join(["wrong:", *wrong]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--run",
        nargs="*",
        metavar="MODULE",
        help="measure 8 images with each analysis; default: all modules",
    )
    parser.add_argument("--undrawn", action="store_true", help="with --run: draw no figures")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    if asked.run is not None:
        measure_all(asked.run or list(representatives()), asked.processes, not asked.undrawn)
        return
    names = [name for names in representatives().values() for name in names]
    with Pool(asked.processes) as pool:
        said = dict(zip(names, pool.imap(verdicts, names), strict=True))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    text = f"{before}{BEGIN}\n\n{table(said)}\n\n{END}{after}"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
