#!/bin/sh
# Repeats this run beside the clone that holds this folder. What depends on the machine is measured anew.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
copy=$(git -C "$here" rev-parse --show-toplevel)/../efficientllm-gpu-nvidia-h100-half
git -C "$here" worktree add --detach "$copy" 727464a0421afbdb5f367b364e344adaa6f6fdbc
cd "$copy"
cp "$here/params.yaml" params.yaml
cp "$here/profile.yaml" profiles/gpu.yaml
make repro
