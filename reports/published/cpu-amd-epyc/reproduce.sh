#!/bin/sh
# Repeats this run beside the clone that holds this folder. What depends on the machine is measured anew.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
copy=$(git -C "$here" rev-parse --show-toplevel)/../efficientllm-cpu-amd-epyc
git -C "$here" worktree add --detach "$copy" 486cdb15d425af5cd2d6ec491d21c55111bd3f93
cd "$copy"
cp "$here/params.yaml" params.yaml
cp "$here/profile.yaml" profiles/cpu.yaml
make repro
