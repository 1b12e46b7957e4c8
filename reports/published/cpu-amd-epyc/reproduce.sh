#!/bin/sh
# Repeats this run beside the clone that holds this folder. What depends on the machine is measured anew.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
copy=$(git -C "$here" rev-parse --show-toplevel)/../efficientllm-cpu-amd-epyc
git -C "$here" worktree add --detach "$copy" 176bad1a1db567558d2be1200effb5621daad481
cd "$copy"
cp "$here/params.yaml" params.yaml
cp "$here/profile.yaml" profiles/cpu.yaml
make repro
