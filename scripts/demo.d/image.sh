#!/usr/bin/env bash
# The demo's file system where nothing can be mounted: an image file that mkfs.ext4 -d fills and
# debugfs reads and changes, and what changed in it is written to the volume.
# Sourced by scripts/demo; scripts/demo.d/mounted.sh has the same functions.
# shellcheck disable=SC2154  # dir and sources are the demo's

image=$dir/image  # the file system as it is
sent=$dir/sent    # the file system as the volume has it

# mkfs.ext4 -d takes long over many files.
sources=("${sources[0]}") names=("${names[0]}")

edit() { debugfs -w -R "$1" "$image" >/dev/null 2>&1; }

make_fs() {
    mkdir "$dir/files"
    cp -a "${sources[@]}" "$dir/files"
    truncate -s 10G "$image" "$sent"
    run mkfs.ext4 -q -F -d "$dir/files" "$image"
    rm -r "$dir/files"
    # Does now what e2fsck would otherwise do in discard, below, instead of discarding: it indexes
    # the directories, which mkfs does not.
    e2fsck -f -y "$image" >/dev/null 2>&1 || (($? == 1))
    flush_fs
}

# After a crash only the volume counts.
open_fs() {
    rm -f "$image" "$sent"
    run nbdcopy "$(thinpool uri disk)" "$image"
    cp --sparse=always "$image" "$sent"
}

close_fs() { :; }

flush_fs() {
    python scripts/demo.d/send_changes.py "$sent" "$image" "$(thinpool uri disk)"
    cp --sparse=always "$image" "$sent"
}

put() {
    edit "rm $1"
    printf '%s\n' "$2" >"$dir/text"
    edit "write $dir/text $1"
}

put_random() {
    head -c "$2" /dev/urandom >"$dir/random"
    edit "write $dir/random $1"
    rm "$dir/random"
}

remove() { edit "rm $1"; }

discard() {
    run e2fsck -f -p -E discard "$image"
    flush_fs
}

digest() {
    local name
    mkdir "$dir/out"
    for name in "${names[@]}"; do
        debugfs -R "rdump $name $dir/out" "$image" >/dev/null 2>&1
    done
    # Not the times: debugfs does not keep those of folders.
    (cd "$dir/out" && tar --create --sort=name --mtime=@0 "${names[@]}" | sha256sum | cut -c1-32)
    rm -r "$dir/out"
}

read_file() { debugfs -R "cat $1" "$image" 2>/dev/null; }
freeze_fs() { flush_fs; }
thaw_fs() { :; }

read_snapshot() {
    run nbdcopy "$(thinpool uri "$1")" "$dir/old"
    say "$2 of $1: $(debugfs -R "cat $2" "$dir/old" 2>/dev/null)"
    rm "$dir/old"
}
