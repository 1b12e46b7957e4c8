#!/bin/sh
# Repeats this run beside the clone that holds this folder. What depends on the machine is measured anew.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
clone=$(git -C "$here" rev-parse --show-toplevel)
copy=$clone/../efficientllm-cpu-amd-epyc
git -C "$here" worktree add --detach "$copy" e404f36bf8aefe6324a4909df57db9f2bfe1bae6
cd "$copy"
cp "$here/params.yaml" params.yaml
cp "$here/profile.yaml" profiles/cpu.yaml
make repro
