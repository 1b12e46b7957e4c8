#!/bin/sh
# Repeats this run beside the clone that holds this folder. What depends on the machine is measured anew.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
copy=$(git -C "$here" rev-parse --show-toplevel)/../efficientllm-cpu-amd-epyc
git -C "$here" worktree add --detach "$copy" d1e061a3268ac1d49f808efd02f5673c98274de8
cd "$copy"
cp "$here/params.yaml" params.yaml
cp "$here/profile.yaml" profiles/cpu.yaml
make repro
