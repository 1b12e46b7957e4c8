#!/bin/sh
# Repeats this run beside the clone that holds this folder. What depends on the machine is measured anew.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
copy=$(git -C "$here" rev-parse --show-toplevel)/../efficientllm-gpu-nvidia-h200
git -C "$here" worktree add --detach "$copy" da66a33670534ded7425899c7b75865729bcde03
cd "$copy"
cp "$here/params.yaml" params.yaml
cp "$here/profile.yaml" profiles/gpu.yaml
make repro
