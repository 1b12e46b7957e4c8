#!/bin/sh
# Repeats this run beside the clone that holds this folder. What depends on the machine is measured anew.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
copy=$(git -C "$here" rev-parse --show-toplevel)/../efficientllm-gpu-nvidia-h100-dense
git -C "$here" worktree add --detach "$copy" 8966394ab3eabe0060263a03bf28fcd6623c443e
cd "$copy"
cp "$here/params.yaml" params.yaml
cp "$here/profile.yaml" profiles/gpu.yaml
make repro
