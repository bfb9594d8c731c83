#!/usr/bin/env bash
# The demo's file system, mounted: nbdfuse shows a volume as a file, a loop device makes it a disk.
# Sourced by scripts/demo; scripts/demo.d/image.sh has the same functions for other machines.
# shellcheck disable=SC2154  # dir and sources are the demo's

fs=$dir/fs
fuse_pids=() fuse_dirs=() loops=() mounts=()

# attach VOLUME [ro]: makes a loop device over a volume and names it in REPLY.
attach() {
    local folder=$dir/fuse-$1 fuse=(nbdfuse) loop=(losetup)
    [[ ${2-} != ro ]] || fuse+=(-r) loop+=(--read-only)
    mkdir -p "$folder"
    rm -f "$dir/nbdfuse.pid"
    "${fuse[@]}" -P "$dir/nbdfuse.pid" "$folder/volume" "$(thinpool uri "$1")" 2>>"$dir/nbdfuse.log" &
    fuse_pids+=($!) fuse_dirs+=("$folder")
    disown # it aborts when its server is killed: nothing to report
    until [[ -s $dir/nbdfuse.pid ]]; do
        alive $! || fail "nbdfuse did not start"
        sleep 0.05
    done
    REPLY=$("${loop[@]}" --find --show "$folder/volume")
    loops+=("$REPLY")
}

make_fs() {
    attach disk
    run mkfs.ext4 -q -F "$REPLY"
    mkdir "$fs"
    mount "$REPLY" "$fs"
    mounts+=("$fs")
    run cp -a "${sources[@]}" "$fs"
}

open_fs() {
    attach disk
    run mount "$REPLY" "$fs"
    mounts+=("$fs")
}

close_fs() {
    local path pid
    for path in "${mounts[@]}"; do
        mountpoint -q "$path" || continue
        # Lazily where its disk has gone.
        umount "$path" 2>/dev/null || umount --lazy "$path"
    done
    for path in "${loops[@]}"; do losetup --detach "$path" || true; done
    for path in "${fuse_dirs[@]}"; do fusermount3 -u -q "$path" || true; done
    for pid in "${fuse_pids[@]}"; do end "$pid"; done
    mounts=() loops=() fuse_dirs=() fuse_pids=()
}

flush_fs() { sync --file-system "$fs"; }
put() { printf '%s\n' "$2" >"$fs/$1"; }
put_random() { head -c "$2" /dev/urandom >"$fs/$1"; }
remove() { rm "$fs/$1"; }
discard() { run fstrim --verbose "$fs"; }
digest() { (cd "$fs" && tar --create --sort=name "${names[@]}" | sha256sum | cut -c1-32); }
read_file() { cat "$fs/$1"; }

# At one instant, with nothing of the file system's half way.
freeze_fs() { fsfreeze --freeze "$fs"; }
thaw_fs() { fsfreeze --unfreeze "$fs"; }

# read_snapshot NAME PATH: a file as the snapshot has it.
read_snapshot() {
    local old=$dir/old
    attach "$1" ro
    mkdir -p "$old"
    # noload: the journal of a read-only device cannot be replayed.
    run mount -o ro,noload "$REPLY" "$old"
    mounts+=("$old")
    say "$2 of $1: $(cat "$old/$2")"
    umount "$old"
    losetup --detach "$REPLY"
    fusermount3 -u "${fuse_dirs[-1]}"
    end "${fuse_pids[-1]}"
    unset 'mounts[-1]' 'loops[-1]' 'fuse_dirs[-1]' 'fuse_pids[-1]'
}
