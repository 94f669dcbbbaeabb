#!/usr/bin/env bash
# Retrains the small models that ship with vitsee: `scripts/zoo.sh [NAME…]`, by default all. Takes hours on two CPU
# cores, a minute per model on a GPU. After an interruption, the same command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
vitsee=${VITSEE:-.venv/bin/vitsee}
wanted=" $* "

train() { # name, then options of `vitsee train`
  local name=$1 folder
  shift
  [ "$wanted" = "  " ] || [[ $wanted = *" $name "* ]] || return 0
  folder=$("$vitsee" train model="$name" "$@")
  cp "$folder/$name.safetensors" "$folder/$name.md" vitsee/weights/
}

train resnet_mini recipe=resnet_mini
train vit_mini recipe=vit_mini
train vit_nano recipe=vit_nano
train vit_nano_data_3 recipe=vit_nano recipe.fraction=0.03 recipe.images_seen=160000
train vit_nano_data_10 recipe=vit_nano recipe.fraction=0.1
train vit_nano_data_30 recipe=vit_nano recipe.fraction=0.3
train vit_mini_data_3 recipe=vit_mini recipe.fraction=0.03 recipe.images_seen=160000
train vit_mini_data_10 recipe=vit_mini recipe.fraction=0.1 recipe.images_seen=160000
train vit_mini_data_30 recipe=vit_mini recipe.fraction=0.3 recipe.images_seen=240000
train resnet_mini_data_3 recipe=resnet_mini recipe.fraction=0.03 recipe.images_seen=64000
train resnet_mini_data_10 recipe=resnet_mini recipe.fraction=0.1
train vit_nano_gap recipe=vit_nano recipe.lr=0.000375
train vit_nano_noskip_1 recipe=vit_nano
train vit_nano_noskip_7 recipe=vit_nano
train vit_nano_noskip_10 recipe=vit_nano
train vit_nano_p14 recipe=vit_nano
train mixer_mini recipe=mixer_mini
train hybrid_mini recipe=hybrid_mini
train resnet_mini_deep recipe=resnet_mini_deep recipe.images_seen=96000
train vit_nano_finetuned recipe=vit_nano_finetuned
# Only if named: including it, the weights would exceed 40 MB in total.
[ "$wanted" = "  " ] || train resnet_mini_data_30 recipe=resnet_mini recipe.fraction=0.3 recipe.images_seen=96000
