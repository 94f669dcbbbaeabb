"""The help texts of `vitsee --help` and `vitsee run --help`."""

from __future__ import annotations


def usage(verbs: dict[str, str]) -> str:
    """The verbs of the command, one per line."""
    lines = "\n".join(f"  vitsee {name:7} {words.strip()}" for name, words in verbs.items())
    return f"""vitsee: see how vision models represent images

{lines}

`vitsee run` alone compares all layers of a small trained ViT; it needs no network and no GPU.
`vitsee run --help` lists the options, `vitsee list models` the models. Every verb takes your own analyses and claims
(--import FILE), and models, data sets, figures, zoos, recipes and protocols (--config-dir DIR).
Tab completion: eval "$(vitsee -sc install=bash)", for zsh eval "$(vitsee -sc install=zsh)"."""


RUN_HELP = """usage: vitsee run [analysis=NAME] [model=NAME] [model@other=NAME] [dataset=NAME] [key=value …]
       vitsee run figure=NAME[,NAME…]|all [zoo=mini|small|paper] [key=value …]

Measures one experiment, writes its tables (CSV) and draws its figures (PNG). The same command resumes an
interrupted run; if everything is already measured, it only redraws.

  vitsee run                                              CKA of vit_mini on scenes
  vitsee run analysis=cka model=vit_l16                   as in the paper, on a GPU machine
  vitsee run model=vit_l16 model@other=r50x1              between two models
  vitsee run model=timm model.timm=NAME dataset=folder dataset.root=PATH
  vitsee run model=torchvision model.id=NAME              or transformers, open_clip, import (your own)
  vitsee run -m model=vit_b16,vit_l16                     one after another; on SLURM: hydra/launcher=slurm
  vitsee run -m model=timm 'model.timm=glob:vit_*augreg*'   every timm model whose name matches
  vitsee run --from outputs/…/experiment.yaml             repeat a result
  vitsee run figure=fig01 zoo=mini                        a published figure: all panels and claims
  vitsee run figure=all zoo=paper                         all figures of the two papers (`vitsee list figures`)
  vitsee run figure=fig01 figure.width=column run.pdf=true     one column wide (default: text width), as PDF
  vitsee run figure=claims model=NAME model@other=NAME    test the claims on any two models
  vitsee run --import my_analysis.py analysis=mine        your own analysis: docs/extending.md
  vitsee run --config-dir conf model=mine                 your own models, data sets, figures, …: conf/model/mine.yaml

Choices
{choices}

What is measured
  images=N             how many images (default: the analysis's own number)
  batch_size=N         images in a minibatch (default: the analysis's own number; for CKA 256, at least 4)
  repeats=1            how often the images are drawn and shuffled
  tolerance=0.01       stop once the largest standard error is this small
  seed=0               seed that draws and orders the images
  precision=fp32       fp32, tf32 or bf16: arithmetic of the forward pass
  analysis.layers=…    paper, four, blocks, or patterns: 'analysis.layers=[blocks.*,norm]'
  analysis.tokens=all  all, cls or patches
  model.pretrained=false        random weights        model.checkpoint=PATH   local weights
  dataset.on_bad_image=skip     leave out images that cannot be decoded

How and where (changes no numbers, except by rounding)
  run.outputs=outputs  run.device=auto|cpu|cuda|cuda:N|mps  run.workers=N  run.progress=true
  run.device=all       every GPU of this machine, one process each (run.gpus=N: only N of them)
  run.shard=0 run.shards=1      this job's share of the minibatches; the last job writes the tables
  run.save_every=10    minibatches between checkpoints          run.pdf=true   also write PDFs (run.svg=true: SVGs)

--cfg job prints the composed configuration, with every option.
Exit codes: 0 done, 2 your mistake, 3 other shards are missing, 130 interrupted (state saved), 1 a bug."""
