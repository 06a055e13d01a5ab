# The device's side of `edge ship`: read by `sh` from its standard input, so nothing needs to be installed there.
#
# Requests are lines on standard input: an operation, then its arguments, one a line. Names are data: they are read with
# `read -r`, only ever are in double quotes behind a folder, and no command is ever put together from one. Answers are
# lines on standard output that begin with the nonce of this session, so what a login shell prints does not matter.
# Needs a POSIX sh and GNU coreutils, findutils, util-linux (flock): what Ubuntu calls essential.
#
# What holds at every moment: `current` is absent, or a symbolic link to a folder whose files were all read back and
# compared with their sha256 after they were written and synced.

set -u
LC_ALL=C
export LC_ALL
unset CDPATH
umask 022
exec 3>&1
IFS= read -r nonce || exit 0

say() { printf '%s %s\n' "$nonce" "$*" >&3; }
fail() { # kind words…
  say fail "$@"
  exit 0
}
oneline() { printf '%s' "$1" | tr '\n\r\t' '   ' | cut -c 1-300; }
first() { oneline "$(printf '%s\n' "$1" | head -n 1)"; }
# A command that writes; its own words tell why it did not.
try() {
  words=$("$@" 2>&1 >/dev/null 9>&-) || fail write "$(first "$words")"
}

is_digest() {
  case $1 in *[!0-9a-f]*) return 1 ;; esac
  [ ${#1} -eq 64 ]
}
need_digest() { is_digest "$1" || fail protocol "not a digest"; }
need_number() { case $1 in '' | *[!0-9]*) fail protocol "not a number" ;; esac; }
need_path() {
  case $1 in
    '' | /* | */ | *//* | . | .. | ./* | ../* | */./* | */../* | */. | */.. | *\\*) fail protocol "not a name in a bundle" ;;
  esac
}
need_lock() { [ -n "$locked" ] || fail protocol "not locked"; }

root='' edge='' system='' own='' locked='' beat='' watcher='' older=''

# The bundle that link $1 leads to, as bundles/<digest>; nothing where it leads anywhere else.
leads_to() {
  goal=$(readlink -- "$root/$1") || return 0
  case $goal in bundles/*) if is_digest "${goal#bundles/}"; then printf '%s' "$goal"; fi ;; esac
}

# ---- who is there ----------------------------------------------------------------------------------------------------

hello() {
  IFS= read -r root
  IFS= read -r edge
  IFS= read -r system
  IFS= read -r own
  case $root in /*) ;; *) root=${HOME:-/}/$root ;; esac
  for tool in base64 cmp cp cut dd find flock ln mkdir mv readlink rm sha256sum sort stat sync tail tr; do
    command -v "$tool" >/dev/null 2>&1 || fail tools "$tool"
  done
  say root "$root"
  if [ -d "$root/bundles" ]; then say there yes; fi
  say clock "$(date +%s)"
  situation
  find_edge
  if command -v rsync >/dev/null 2>&1; then say rsync yes; fi
  for file in proc/device-tree/compatible proc/device-tree/model etc/nv_tegra_release proc/sys/kernel/arch; do
    if [ -r "$system/$file" ]; then say file "$file" "$(base64 -w0 <"$system/$file" 2>/dev/null)"; fi
  done
  say done
}

# What another ship may change while this one waits for the lock.
situation() {
  folder=$root
  while [ ! -d "$folder" ] && [ -n "${folder%/*}" ]; do folder=${folder%/*}; done
  say free "$(stat -f -c '%a %S' -- "$folder" 2>/dev/null)"
  for name in current previous; do
    now=$(leads_to "$name")
    [ -z "$now" ] || say "$name" "$now"
    # What the canary said about the bundle in use.
    if [ "$name" = current ] && [ -n "$now" ] && [ -f "$root/canary/${now##*/}.json" ]; then say proved yes; fi
  done
}

# A shell without a terminal has a short PATH, so the usual places are looked at too. Nothing is run from a folder that
# was only put into this machine (a stick, a share), and nothing at all for another machine whose disk this is.
find_edge() {
  if [ -z "$edge$system" ]; then
    for place in "${own:+$root/venv/bin/edge}" "$(command -v edge 2>/dev/null)" "${HOME:-}/.local/bin/edge" \
      "${HOME:-}/edge/.venv/bin/edge"; do
      if [ -n "$place" ] && [ -x "$place" ]; then
        edge=$place
        break
      fi
    done
  fi
  if [ -n "$edge" ] && [ -x "$edge" ]; then say edge "$edge"; else edge=''; fi
}

# ---- one at a time ---------------------------------------------------------------------------------------------------

begin() {
  IFS= read -r patience
  IFS= read -r who
  need_number "$patience"
  no_links
  try mkdir -p -- "$root/blobs/sha256" "$root/bundles" "$root/incoming" "$root/canary"
  # `exec` with a redirection that fails would end the shell without a word.
  words=$( (: >>"$root/lock") 2>&1) || fail write "$(oneline "$words")"
  exec 9>>"$root/lock"
  # What waits here must not hold the answers' end open when this session is ended.
  flock -w "$patience" 9 >/dev/null 2>&1 3>&- || fail locked "$(oneline "$(cut -c 1-200 <"$root/lock")")"
  locked=yes
  for name in incoming $foreign; do
    [ ! -d "$root/$name" ] || try find "$root/$name" ! -type f ! -type d -exec rm -f -- {} +
  done
  (printf '%s (process %s)\n' "$who" $$ >"$root/lock") 2>/dev/null
  beat=$root/incoming/beat.$$
  watch &
  watcher=$!
  trap 'kill "$watcher" 2>/dev/null; rm -f -- "$beat"' EXIT
  situation
  say done
}

# Somebody may have prepared a stick or a share: nothing is written or cleared away behind a link in it.
no_links() {
  foreign=''
  [ -n "$own" ] || foreign='canary cache engines timing'
  for name in blobs blobs/sha256 bundles canary incoming ${foreign:+venvs} $foreign; do
    if [ -L "$root/$name" ]; then fail write "$root/$name is a symbolic link"; fi
  done
  for name in history.jsonl install.lock lock; do
    if [ -L "$root/$name" ] || { [ -e "$root/$name" ] && [ ! -f "$root/$name" ]; }; then
      fail write "$root/$name is not a regular file"
    fi
  done
}

# A line that was cut without a word would hold the lock until TCP gives up, which is hours. `beat` is written whenever
# this session begins to wait for its client, and says so; while the device itself is at work, it says that. Over a slow
# line one piece may take minutes, and the part that it belongs to grows meanwhile.
watch() {
  exec </dev/null >/dev/null 2>&1 3>&- 9>&-
  nap=''
  trap '[ -z "$nap" ] || kill "$nap"; exit' TERM
  last='' quiet=0
  while :; do
    sleep 15 &
    nap=$!
    wait "$nap"
    kill -0 $$ || exit
    state=''
    read -r state <"$beat"
    seen=$(stat -c '%y %s' -- "$beat" "$root"/incoming/*.part)
    if [ "$state" = waits ] && [ "$seen" = "$last" ]; then quiet=$((quiet + 1)); else quiet=0; fi
    last=$seen
    [ "$quiet" -lt 8 ] || kill $$
  done
}
tell_beat() { [ -z "$beat" ] || printf '%s\n' "$1" 2>/dev/null >"$beat"; }

# ---- files, by digest ------------------------------------------------------------------------------------------------

# Which of these files have to travel, and how much of each is there. Left-overs of other bundles are cleared away.
want() {
  wanted=' '
  while IFS= read -r line && [ -n "$line" ]; do
    need_digest "$line"
    wanted="$wanted$line "
    if [ ! -f "$root/blobs/sha256/$line" ]; then
      have=0
      if [ -f "$root/incoming/$line.part" ]; then have=$(stat -c %s -- "$root/incoming/$line.part"); fi
      say need "$line" "$have"
    fi
  done
  for left in "$root"/incoming/*; do
    [ -n "$locked" ] || break
    name=${left##*/}
    case $name in "beat.$$" | rsync) continue ;; esac
    case $wanted in *" ${name%.part} "*) continue ;; esac
    rm -rf -- "$left"
  done
  say done
}

# The next bytes of a file.
put() {
  need_lock
  IFS=' ' read -r sha offset count
  need_digest "$sha"
  need_number "$offset"
  need_number "$count"
  part=$root/incoming/$sha.part
  if [ "$offset" = 0 ]; then
    words=$( (: >"$part") 2>&1) || fail write "$(oneline "$words")"
  else
    have=$(stat -c %s -- "$part") || have=none
    [ "$have" = "$offset" ] || fail protocol "there are $have bytes, not $offset"
  fi
  if [ "$count" != 0 ]; then
    # Whoever fills the disk of a device that works gives the room back at once.
    words=$(dd bs=65536 iflag=fullblock,count_bytes count="$count" 2>&1 >>"$part" 9>&- 3>&-) || {
      rm -f -- "$part"
      fail write "$(first "$words")"
    }
  fi
}

# A file is complete: it joins the others when its content is what its name says.
seal() {
  need_lock
  IFS= read -r sha
  need_digest "$sha"
  part=$root/incoming/$sha.part
  sum=$(sha256sum <"$part" 9>&-)
  if [ "${sum%% *}" = "$sha" ]; then
    try chmod 0444 "$part"
    try sync -- "$part"
    try mv -f -- "$part" "$root/blobs/sha256/$sha"
    say sealed "$sha"
  else
    rm -f -- "$part"
    say bad "$sha"
  fi
}

# What rsync brought, all of it or some, becomes the part of a file. A copy: an rsync that outlived its client may still
# have the file open, and would go on writing into what was verified.
adopt() {
  need_lock
  IFS= read -r sha
  IFS= read -r path
  need_digest "$sha"
  need_path "$path"
  if [ -f "$root/incoming/rsync/$path" ] && [ ! -L "$root/incoming/rsync/$path" ]; then
    part=$root/incoming/$sha.part
    rm -f -- "$part"
    words=$(cp --reflink=auto -- "$root/incoming/rsync/$path" "$part" 2>&1 9>&- 3>&-) || {
      rm -rf -- "$part" "$root/incoming/rsync"
      fail write "$(first "$words")"
    }
    rm -f -- "$root/incoming/rsync/$path"
  fi
  say done
}

# ---- bundles ---------------------------------------------------------------------------------------------------------

# Whether folder $1 holds the files that list $2 names, each with its digest, and nothing else.
fits() {
  [ -d "$1" ] && [ ! -L "$1" ] && [ -f "$2" ] || return 1
  [ -z "$(find "$1" ! -type f ! -type d -print -quit 2>&1)" ] || return 1
  (cd -- "$1" && find . -type f -exec sha256sum {} +) 2>/dev/null 9>&- | sort | cmp -s - "$2"
}

# Put a bundle together from its files, read all of it back, and give it its name.
tree() {
  need_lock
  rm -rf -- "$root/incoming/rsync"
  IFS= read -r digest
  IFS= read -r whole
  IFS= read -r check
  need_digest "$digest"
  need_digest "$whole"
  sig=''
  list=$root/incoming/list.$$
  words=$( (: >"$list") 2>&1) || fail write "$(oneline "$words")"
  while IFS= read -r line && [ -n "$line" ]; do
    need_digest "${line%% *}"
    need_path "${line#* }"
    [ "${line#* }" != bundle.json.sig ] || sig=${line%% *}
    printf '%s  ./%s\n' "${line%% *}" "${line#* }"
  done >>"$list"
  try sort -o "$list" -- "$list"
  # A full disk may have cut the list short: a bundle of half of the files would then fit it.
  sum=$(sha256sum <"$list" 9>&-)
  [ "${sum%% *}" = "$whole" ] || fail write "No space left on device (the list of files)"
  if fits "$root/bundles/$digest" "$list"; then
    check_signature "$root/bundles/$digest"
    keep_list
    say done
    return
  fi
  new=$root/incoming/tree.$$
  rm -rf -- "$new"
  try mkdir -- "$new"
  while IFS= read -r line; do
    path=$new/${line#*  ./}
    [ -d "${path%/*}" ] || try mkdir -p -- "${path%/*}"
    blob=$root/blobs/sha256/${line%% *}
    # A file system without hard links gets copies.
    [ ! -f "$blob" ] || ln -- "$blob" "$path" 2>/dev/null || try cp -- "$blob" "$path"
  done <"$list"
  if ! fits "$new" "$list"; then
    rm -rf -- "$new"
    rotten
    return
  fi
  check_signature "$new"
  try find "$new" -type d -exec sync -- {} +
  try sync -- "$root/blobs/sha256"
  if differs_in_signature "$root/bundles/$digest"; then
    # It may be in use, so it stays where it is.
    if [ -n "$sig" ]; then try mv -f -- "$new/bundle.json.sig" "$root/bundles/$digest/bundle.json.sig"
    else try rm -f -- "$root/bundles/$digest/bundle.json.sig"; fi
    try sync -- "$root/bundles/$digest"
    rm -rf -- "$new"
  else
    # Something is there that is not this bundle: somebody changed it, or the disk did.
    [ ! -e "$root/bundles/$digest" ] || try mv -- "$root/bundles/$digest" "$root/incoming/damaged.$$"
    try mv -T -- "$new" "$root/bundles/$digest"
  fi
  keep_list
  try sync -- "$root/bundles"
  rm -rf -- "$root/incoming/damaged.$$"
  say done
}

# Whether folder $1 would fit $list with the signature $sig, or without one: it was signed later, or by somebody else.
differs_in_signature() {
  [ -d "$1" ] && [ ! -L "$1" ] || return 1
  [ -z "$(find "$1" ! -type f ! -type d -print -quit 2>&1)" ] || return 1
  {
    (cd -- "$1" && find . -type f ! -path ./bundle.json.sig -exec sha256sum {} +) 2>/dev/null
    [ -z "$sig" ] || printf '%s  ./bundle.json.sig\n' "$sig"
  } 9>&- | sort | cmp -s - "$list"
}

# The list stays next to the bundle, for `sha256sum -c` and for going back.
keep_list() {
  try sync -- "$list"
  try mv -f -- "$list" "$root/bundles/$digest.sha256"
}

# Files of the list that are not what their names say are thrown out and named.
rotten() {
  some=''
  while IFS= read -r line; do
    sha=${line%% *}
    blob=$root/blobs/sha256/$sha
    sum=''
    if [ -f "$blob" ] && [ ! -L "$blob" ]; then sum=$(sha256sum <"$blob" 2>/dev/null 9>&-); fi
    [ "${sum%% *}" = "$sha" ] && continue
    rm -rf -- "$blob"
    some=yes
    say rotten "$sha"
  done <"$list"
  [ -n "$some" ] || fail write "Input/output error (files that are whole do not make a whole bundle)"
  say done
}

# Where this device keeps a list of allowed signers, only bundles that one of them signed are taken.
check_signature() { # folder, with the script $check
  words=$(printf '%s' "$check" | base64 -d | sh -s -- "$1" "$root" "$system" 2>&1 9>&- 3>&-)
  case $? in
    0) [ -z "$words" ] || say signed "$(oneline "$words")" ;;
    69) fail tools ssh-keygen ;;
    *) fail signature "$(oneline "$words")" ;;
  esac
}

# Install edge itself, from the wheels in a bundle that was verified.
bootstrap() {
  need_lock
  IFS= read -r digest
  need_digest "$digest"
  wheels=$root/bundles/$digest/wheels
  bash "$wheels/install.sh" --offline "$wheels" --home "$root" >"$root/incoming/install.log" 2>&1 </dev/null 3>&- 9>&-
  say code $?
  say log "$(tail -c 4000 -- "$root/incoming/install.log" | base64 -w0)"
  edge='' own=yes
  find_edge
  say done
}

point() { # name target: in one step
  try rm -f -- "$root/incoming/link.$$"
  try ln -s -- "$2" "$root/incoming/link.$$"
  try mv -fT -- "$root/incoming/link.$$" "$root/$1"
  try sync -- "$root"
}

note() { # one line of JSON
  # A line that a power cut tore stays alone.
  if [ -s "$root/history.jsonl" ] && [ -n "$(tail -c 1 -- "$root/history.jsonl")" ]; then
    echo >>"$root/history.jsonl"
  fi
  printf '%s\n' "$1" >>"$root/history.jsonl"
  sync -- "$root/history.jsonl"
}

switch() {
  need_lock
  IFS= read -r digest
  IFS= read -r line
  need_digest "$digest"
  [ -f "$root/bundles/$digest.sha256" ] && [ -d "$root/bundles/$digest" ] || fail protocol "there is no such bundle"
  old=$(leads_to current)
  older=''
  if [ "$old" != "bundles/$digest" ]; then
    older=$(leads_to previous)
    [ -z "$old" ] || point previous "$old"
    point current "bundles/$digest"
    note "$line" 2>/dev/null
  fi
  say done
}

rollback() {
  need_lock
  IFS= read -r line
  IFS= read -r check
  back=$(leads_to previous)
  [ -n "$back" ] || fail nothing "no previous bundle"
  old=$(leads_to current)
  [ "$back" != "$old" ] || fail nothing "the previous bundle is the current one"
  fits "$root/$back" "$root/$back.sha256" || fail damaged "$back"
  # Who may sign may have changed since it was shipped.
  check_signature "$root/$back"
  [ -z "$old" ] || point previous "$old"
  point current "$back"
  note "$line" 2>/dev/null
  say current "$back"
  say done
}

# Try the bundle, and go back when it does not pass: whether or not anybody is listening by then.
canary() {
  need_lock
  IFS= read -r digest
  IFS= read -r line
  need_digest "$digest"
  set --
  while IFS= read -r word && [ -n "$word" ]; do set -- "$@" "$word"; done
  [ -n "$edge" ] || fail protocol "there is no edge"
  trap '' HUP PIPE INT TERM
  old=$(leads_to previous)
  against=''
  if [ -n "$old" ] && [ -d "$root/$old" ] && [ "$old" != "bundles/$digest" ]; then against=$root/$old; fi
  rm -f -- "$root/canary/$digest.json" "$root/canary/$digest.failed.json"
  log=$root/incoming/canary.log
  "$edge" canary "$root/bundles/$digest" ${against:+--against "$against"} --state "$root" --json "$@" \
    >"$root/incoming/canary.json" 2>"$log" </dev/null 3>&- 9>&-
  code=$?
  say report "$(base64 -w0 <"$root/incoming/canary.json" 2>/dev/null)"
  say log "$(tail -c 2000 -- "$log" 2>/dev/null | base64 -w0)"
  case $code in
    0)
      sync -- "$root/incoming/canary.json"
      mv -f -- "$root/incoming/canary.json" "$root/canary/$digest.json"
      ;;
    2 | 126 | 127) ;; # this edge does not know how, or does not start: that says nothing about the bundle
    *)
      # Also when there was nothing before: no bundle is better than one that does not work.
      if [ -n "$against" ]; then point current "$old"; else try rm -f -- "$root/current"; fi
      if [ -n "$older" ] && [ -d "$root/$older" ]; then point previous "$older"; else try rm -f -- "$root/previous"; fi
      note "$line" 2>/dev/null
      mv -f -- "$root/incoming/canary.json" "$root/canary/$digest.failed.json"
      say back "$old"
      ;;
  esac
  say code "$code"
  say done
  trap - HUP PIPE INT TERM
}

# ---- looking, clearing up, fetching ----------------------------------------------------------------------------------

status() {
  for list in "$root"/bundles/*.sha256; do
    [ -f "$list" ] || continue
    digest=${list##*/}
    digest=${digest%.sha256}
    is_digest "$digest" || continue
    proved=untried
    [ ! -f "$root/canary/$digest.json" ] || proved=passed
    [ ! -f "$root/canary/$digest.failed.json" ] || proved=failed
    say bundle "$digest" "$proved" "$(stat -c %Y -- "$list")" \
      "$(base64 -w0 <"$root/bundles/$digest/bundle.json" 2>/dev/null)"
  done
  say history "$(tail -n 20 -- "$root/history.jsonl" 2>/dev/null | base64 -w0)"
  [ -z "$edge" ] || say version "$(oneline "$("$edge" --version 2>&1 </dev/null)")"
  say done
}

# Whether the bundle that is in use, or $digest, is whole.
verify() {
  IFS= read -r digest
  need_digest "$digest"
  if fits "$root/bundles/$digest" "$root/bundles/$digest.sha256"; then say whole; else say damaged; fi
  say done
}

# Keep current, previous and the $spare newest others; throw out what no bundle holds any more.
gc() {
  need_lock
  IFS= read -r spare
  need_number "$spare"
  one=$(leads_to current) two=$(leads_to previous)
  find "$root/bundles" -maxdepth 1 -name '*.sha256' -printf '%T@ %f\n' | sort -rn | cut -d ' ' -f 2 |
    while IFS= read -r name; do
      digest=${name%.sha256}
      is_digest "$digest" || continue
      case bundles/$digest in "$one" | "$two") continue ;; esac
      if [ "$spare" -gt 0 ]; then
        spare=$((spare - 1))
        continue
      fi
      rm -f -- "$root/bundles/$name" "$root/canary/$digest.json" "$root/canary/$digest.failed.json"
      mv -T -- "$root/bundles/$digest" "$root/incoming/old.$$"
      rm -rf -- "$root/incoming/old.$$" "$root/engines/$digest"
      say removed "$digest"
    done
  # Folders without a list were never finished.
  for folder in "$root"/bundles/*; do
    case bundles/${folder##*/} in *.sha256 | "$one" | "$two") continue ;; esac
    [ -f "$folder.sha256" ] || rm -rf -- "$folder"
  done
  find "$root/incoming" -mindepth 1 -maxdepth 1 ! -name "beat.$$" -exec rm -rf -- {} +
  # In memory: this is what one does when the disk is full.
  kept=$(cat "$root"/bundles/*.sha256 2>/dev/null | cut -c 1-64 | sort -u)
  find "$root/blobs/sha256" -type f -printf '%f\n' |
    while IFS= read -r sha; do
      case $kept in *"$sha"*) continue ;; esac
      say freed "$(stat -c %s -- "$root/blobs/sha256/$sha")"
      rm -f -- "$root/blobs/sha256/$sha"
    done
  say done
}

# Files below the folders that are named, with digest and size; a name that a line cannot hold is left out.
listing() {
  while IFS= read -r folder && [ -n "$folder" ]; do
    need_path "$folder"
    [ -d "$root/$folder" ] || continue
    (cd -- "$root" && find "$folder" -type f ! -name '*.lock' ! -name '.*' ! -path '*[[:cntrl:]\\]*' \
      -exec sha256sum {} +) 2>/dev/null |
      while IFS= read -r line; do say entry "$line"; done
  done
  say done
}

# A device goes on working meanwhile: what was listed may be gone, or get shorter while it is read.
get() {
  IFS= read -r path
  need_path "$path"
  IFS= read -r most
  need_number "$most"
  size=''
  if [ -f "$root/$path" ] && [ ! -L "$root/$path" ]; then size=$(stat -c %s -- "$root/$path" 2>/dev/null); fi
  if [ -z "$size" ]; then
    say gone "it went away while others were read"
  elif [ "$size" -gt "$most" ]; then
    say gone "$size bytes are more than a file of this kind has"
  else
    say data "$size"
    # As many bytes as were said, whatever happens to the file.
    cat -- "$root/$path" /dev/zero 2>/dev/null | head -c "$size" >&3
  fi
}

# ---- the conversation ------------------------------------------------------------------------------------------------

printf '\n' >&3
say ready 1
while
  tell_beat waits
  IFS= read -r verb
do
  tell_beat works
  case $verb in
    hello | begin | want | seal | adopt | tree | switch | rollback | bootstrap | canary | status | verify | gc | listing | get) "$verb" ;;
    put)
      tell_beat waits
      put
      ;;
    beat) ;;
    *) fail protocol "no such verb" ;;
  esac
done
