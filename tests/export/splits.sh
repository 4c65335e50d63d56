#!/usr/bin/env bash
# Checks that the dataset folder of the select stage loads with Hugging Face datasets, pandas and pyarrow, and says what its JSONL says.
#
#   tests/export/splits.sh [FOLDER…]      FOLDER: what `mla-run checkout select FOLDER` made
#
# Default: the splits of pipelines/full.toml, those with neighbours as outliers and with the rows of the original toolkit, and those of
# pipelines/smoke.toml, which have context gains; made by MLA_RUN (default target/release/mla-run). Nothing is downloaded at run time. Needs Python 3.10 or newer:
#
#   python3 -m venv venv
#   venv/bin/pip install datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1
#   PYTHON=venv/bin/python tests/export/splits.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
program=$(realpath "${MLA_RUN:-target/release/mla-run}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ $# = 0 ]; then
  run=(--cache "$scratch/cache" --no-lock)
  for settings in '' 'cluster.outliers="knn"' 'original' 'gains'; do
    to="$scratch/splits-$#"
    set=() pipeline=pipelines/full.toml
    case $settings in
      '') ;;
      gains) pipeline=pipelines/smoke.toml ;;
      original) set=(--set 'select.compat="original"' --set 'select.embeddings="embed"') ;;
      *) set=(--set "$settings") ;;
    esac
    "$program" run $pipeline --until select "${run[@]}" "${set[@]}" >/dev/null
    "$program" checkout select "$to" $pipeline --cache "$scratch/cache" "${set[@]}" >/dev/null
    set -- "$@" "$to"
  done
fi
failed=0
for folder in "$@"; do
  echo "== $folder"
  HF_HOME="$scratch/hf" HF_HUB_OFFLINE=1 "$python" tests/export/splits.py "$folder" || failed=1
done
exit $failed
