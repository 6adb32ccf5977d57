#!/usr/bin/env bash
# Pack a folder into a dated archive and keep only the newest few.
#
# usage: rotate_backups.sh SOURCE_DIR BACKUP_DIR [KEEP]
#
# The archive is first written under a temporary name and renamed when complete,
# so a crash or a full disk never leaves a broken file that looks like a backup.

set -euo pipefail

usage() {
    echo "usage: ${0##*/} SOURCE_DIR BACKUP_DIR [KEEP]" >&2
    exit 64
}

[[ $# -ge 2 && $# -le 3 ]] || usage
source_dir=$1
backup_dir=$2
keep=${3:-7}

[[ -d $source_dir ]] || { echo "not a folder: $source_dir" >&2; exit 66; }
[[ $keep =~ ^[1-9][0-9]*$ ]] || { echo "KEEP must be a positive number" >&2; exit 64; }

mkdir -p -- "$backup_dir"
name=$(basename -- "$(realpath -- "$source_dir")")
stamp=$(date -u +%Y%m%dT%H%M%SZ)          # sorts by name in the order of time
target="$backup_dir/$name-$stamp.tar.gz"
partial=$(mktemp -- "$backup_dir/.partial.XXXXXX")
trap 'rm -f -- "$partial"' EXIT

tar -czf "$partial" -C "$(dirname -- "$(realpath -- "$source_dir")")" -- "$name"
gzip -t < "$partial" || { echo "archive failed its check" >&2; exit 74; }
mv -- "$partial" "$target"
echo "wrote $target"

# Collect the archives of this folder. The stamp has a fixed width, so the glob,
# which the shell sorts by name, lists the oldest first.
shopt -s nullglob
archives=("$backup_dir/$name"-????????T??????Z.tar.gz)
surplus=$(( ${#archives[@]} - keep ))
for (( i = 0; i < surplus; i++ )); do
    rm -- "${archives[i]}"
    echo "removed ${archives[i]}"
done
