# The device's side of `edge ship`: read by `sh` from its standard input, so nothing needs to be installed there.
#
# Requests are lines on standard input: a name, then its arguments, one a line. File names are data: they are read with
# `read -r`, only ever are in double quotes behind a folder, and no command is ever put together from one. Answers are
# lines on standard output that begin with the nonce of this session, so what a login shell prints does not matter.
# Needs a POSIX sh and GNU coreutils, findutils, sed, util-linux (flock): what Ubuntu calls essential.
#
# What holds at every moment: `current` is absent, or a symbolic link to a folder whose files were all read back and
# compared with their sha256 after they were written and synced.
#
# canary/ has the verdict of each bundle's trial: <digest>.json passed; <digest>.failed.json failed; <digest>.trying a
# trial is at work, or was cut off; <digest>.unknown one was cut off before. No file: not tried. docs/shipping.md has the
# states and transitions.

set -u
LC_ALL=C
export LC_ALL
unset CDPATH
umask 022
exec 3>&1
IFS= read -r nonce || exit 0

answer() { printf '%s %s\n' "$nonce" "$*" >&3; }
fail() { # kind words…
  answer fail "$@"
  exit 0
}
oneline() { printf '%s' "$1" | tr '\n\r\t' '   ' | cut -c 1-300; }
first() { oneline "$(printf '%s\n' "$1" | head -n 1)"; }
# A command that writes; its error message is the reason.
must() {
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

root='' edge='' system='' own='' locked='' beat='' watcher='' foreign_edge=''

# The digest of the bundle that link $1 leads to; nothing where it leads anywhere else.
leads_to() {
  goal=$(readlink -- "$root/$1") || return 0
  case $goal in bundles/*) if is_digest "${goal#bundles/}"; then printf '%s' "${goal#bundles/}"; fi ;; esac
}

# ---- who is there ----------------------------------------------------------------------------------------------------

hello() {
  IFS= read -r root
  IFS= read -r edge
  IFS= read -r system
  IFS= read -r own
  case $root in /*) ;; *) root=${HOME:-/}/$root ;; esac
  missing=''
  for tool in base64 cat chmod cmp cp cut date dd find flock head ln ls mkdir mv readlink rm sed sha256sum sleep sort stat \
    sync tac tail tr; do
    command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
  done
  [ -z "$missing" ] || fail tools "${missing# }"
  answer root "$root"
  if [ -d "$root/bundles" ]; then answer there yes; fi
  answer clock "$(date +%s)"
  situation
  find_edge
  if command -v rsync >/dev/null 2>&1; then answer rsync yes; fi
  for file in proc/device-tree/compatible proc/device-tree/model etc/nv_tegra_release proc/sys/kernel/arch; do
    if [ -r "$system/$file" ]; then answer file "$file" "$(base64 -w0 <"$system/$file" 2>/dev/null)"; fi
  done
  answer done
}

# What another ship may change while this one waits for the lock.
situation() {
  folder=$root
  while [ ! -d "$folder" ] && [ -n "${folder%/*}" ]; do folder=${folder%/*}; done
  answer free "$(stat -f -c '%a %S' -- "$folder" 2>/dev/null)"
  for name in current previous; do
    now=$(leads_to "$name")
    [ -z "$now" ] || answer "$name" "$now"
    if [ "$name" = current ] && [ -n "$now" ]; then answer verdict "$(verdict_of "$now")"; fi
  done
}

# What is in use now.
look() {
  situation
  answer done
}

# A shell without a terminal has a short PATH, so the usual places are looked at too. Nothing is run from a folder that
# was only put into this machine (a stick, a share), and nothing at all for another machine whose disk this is.
find_edge() {
  if [ -z "$edge$system" ]; then
    for place in "${own:+$root/venv/bin/edge}" "$(command -v edge 2>/dev/null)" "${HOME:-}/.local/bin/edge" \
      "${HOME:-}/edge/.venv/bin/edge"; do
      [ -n "$place" ] && [ -f "$place" ] && [ -x "$place" ] || continue
      if is_script "$place"; then
        edge=$place
        break
      fi
      foreign_edge=$place
    done
  elif [ -n "$edge" ] && [ -x "$edge" ] && ! is_script "$edge"; then
    foreign_edge=$edge edge=''
  fi
  if [ -n "$edge" ] && [ -x "$edge" ]; then answer edge "$edge"; else edge=''; fi
  if [ -z "$edge" ] && [ -n "$foreign_edge" ]; then answer foreign "$foreign_edge"; fi
}

# edge's command is a script. A compiled program of that name is another one: Debian's n2n has /usr/sbin/edge.
is_script() { [ "$(head -c 2 -- "$1" 2>/dev/null | base64 -w0)" = IyE= ]; }

# ---- one at a time ---------------------------------------------------------------------------------------------------

begin() {
  IFS= read -r lock_timeout_s
  IFS= read -r who
  need_number "$lock_timeout_s"
  no_links
  must mkdir -p -- "$root/blobs/sha256" "$root/bundles" "$root/incoming" "$root/canary"
  # `exec` with a redirection that fails would end the shell without a word.
  words=$( (: >>"$root/lock") 2>&1) || fail write "$(oneline "$words")"
  exec 9>>"$root/lock"
  # What waits here must not hold the answers' end open when this session is ended.
  flock -w "$lock_timeout_s" 9 >/dev/null 2>&1 3>&- || fail locked "$(oneline "$(cut -c 1-200 <"$root/lock")")"
  locked=yes
  for name in incoming $foreign; do
    [ ! -d "$root/$name" ] || must find "$root/$name" ! -type f ! -type d -exec rm -f -- {} +
  done
  (printf '%s (process %s)\n' "$who" $$ >"$root/lock") 2>/dev/null
  note_cut_off_trials
  beat=$root/incoming/beat.$$
  watch &
  watcher=$!
  trap 'kill "$watcher" 2>/dev/null; rm -f -- "$beat"' EXIT
  situation
  answer done
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
      answer need "$line" "$have"
    fi
  done
  for left in "$root"/incoming/*; do
    [ -n "$locked" ] || break
    name=${left##*/}
    case $name in "beat.$$" | rsync) continue ;; esac
    case $wanted in *" ${name%.part} "*) continue ;; esac
    rm -rf -- "$left"
  done
  answer done
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
    # A transfer that filled the disk of a working device gives the space back at once.
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
    must chmod 0444 "$part"
    must sync -- "$part"
    must mv -f -- "$part" "$root/blobs/sha256/$sha"
    answer sealed "$sha"
  else
    rm -f -- "$part"
    answer bad "$sha"
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
  answer done
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
  must sort -o "$list" -- "$list"
  # A full disk may have cut the list short: a bundle of half of the files would then fit it.
  sum=$(sha256sum <"$list" 9>&-)
  [ "${sum%% *}" = "$whole" ] || fail write "No space left on device (the list of files)"
  if fits "$root/bundles/$digest" "$list"; then
    check_signature "$root/bundles/$digest"
    keep_list
    answer done
    return
  fi
  new=$root/incoming/tree.$$
  rm -rf -- "$new"
  must mkdir -- "$new"
  while IFS= read -r line; do
    path=$new/${line#*  ./}
    [ -d "${path%/*}" ] || must mkdir -p -- "${path%/*}"
    blob=$root/blobs/sha256/${line%% *}
    # A file system without hard links gets copies, which are synced like the files that they are copies of.
    if [ -f "$blob" ] && ! ln -- "$blob" "$path" 2>/dev/null; then
      must cp -- "$blob" "$path"
      must sync -- "$path"
    fi
  done <"$list"
  if ! fits "$new" "$list"; then
    rm -rf -- "$new"
    rotten
    return
  fi
  check_signature "$new"
  must find "$new" -type d -exec sync -- {} +
  must sync -- "$root/blobs/sha256"
  if differs_in_signature "$root/bundles/$digest"; then
    # It may be in use, so it stays where it is.
    if [ -n "$sig" ]; then must mv -f -- "$new/bundle.json.sig" "$root/bundles/$digest/bundle.json.sig"
    else must rm -f -- "$root/bundles/$digest/bundle.json.sig"; fi
    must sync -- "$root/bundles/$digest"
    rm -rf -- "$new"
  else
    # Something is there that is not this bundle: somebody changed it, or the disk did.
    [ ! -e "$root/bundles/$digest" ] || must mv -- "$root/bundles/$digest" "$root/incoming/damaged.$$"
    must mv -T -- "$new" "$root/bundles/$digest"
  fi
  keep_list
  must sync -- "$root/bundles"
  rm -rf -- "$root/incoming/damaged.$$"
  answer done
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
  must sync -- "$list"
  must mv -f -- "$list" "$root/bundles/$digest.sha256"
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
    answer rotten "$sha"
  done <"$list"
  [ -n "$some" ] || fail write "Input/output error (files that are whole do not make a whole bundle)"
  answer done
}

# Where this device keeps a list of allowed signers, only bundles that one of them signed are taken.
check_signature() { # folder, with the script $check
  is_signed "$1" "$check"
  case $? in
    0) [ -z "$words" ] || answer signed "$(oneline "$words")" ;;
    69) fail tools ssh-keygen ;;
    *) fail signature "$(oneline "$words")" ;;
  esac
}
is_signed() { # folder, script; what it printed is left in $words
  words=$(printf '%s' "$2" | base64 -d | sh -s -- "$1" "$root" "$system" 2>&1 9>&- 3>&-)
}

# Install edge itself, from the wheels in a bundle that was verified.
bootstrap() {
  need_lock
  IFS= read -r digest
  need_digest "$digest"
  wheels=$root/bundles/$digest/wheels
  bash "$wheels/install.sh" --offline "$wheels" --home "$root" >"$root/incoming/install.log" 2>&1 </dev/null 3>&- 9>&-
  answer code $?
  answer log "$(tail -c 4000 -- "$root/incoming/install.log" | base64 -w0)"
  edge='' own=yes
  find_edge
  answer done
}

# ---- which bundle is in use, and what its trial showed ---------------------------------------------------------------

point() { # name digest: in one step
  must rm -f -- "$root/incoming/link.$$"
  must ln -s -- "bundles/$2" "$root/incoming/link.$$"
  must mv -fT -- "$root/incoming/link.$$" "$root/$1"
  must sync -- "$root"
}

use() { # digest
  left=$(leads_to current)
  [ "$left" != "$1" ] || return 0
  [ -z "$left" ] || point previous "$left"
  point current "$1"
}

note() { # one line of JSON
  # A line that a power cut tore stays alone.
  if [ -s "$root/history.jsonl" ] && [ -n "$(tail -c 1 -- "$root/history.jsonl")" ]; then
    echo >>"$root/history.jsonl"
  fi
  printf '%s\n' "$1" >>"$root/history.jsonl"
  sync -- "$root/history.jsonl"
}

need_bundle() { [ -f "$root/bundles/$1.sha256" ] && [ -d "$root/bundles/$1" ] || fail protocol "there is no such bundle"; }

# passed, failed, unknown, or untried.
verdict_of() { # digest
  if [ -f "$root/canary/$1.trying" ] || [ -f "$root/canary/$1.unknown" ]; then printf unknown
  elif [ -f "$root/canary/$1.failed.json" ]; then printf failed
  elif [ -f "$root/canary/$1.json" ] && is_passed_report "$root/canary/$1.json"; then printf passed
  elif shipped_by_older_edge "$1"; then printf passed
  else printf untried
  fi
}

is_passed_report() { case $(head -c 4096 -- "$1" 2>/dev/null) in *'"passed":true'*) ;; *) return 1 ;; esac; }

# Before verdicts there was only the history: such a bundle counts as passed when it came into use and was not taken
# back. Lines of today's edge have a "trial".
shipped_by_older_edge() { # digest
  [ -f "$root/history.jsonl" ] || return 1
  found=$(
    sed -n "/\"bundle\": \"$1\"/p" <"$root/history.jsonl" 2>/dev/null | tail -n 50 | (
      good=''
      while IFS= read -r entry; do
        case $entry in
          *'"action": "rollback"'*) ;;
          *'"trial": '*) good='' ;;
          *'"action": "ship"'*) good=yes ;;
          *'"action": "back"'*) good='' ;;
        esac
      done
      printf '%s' "$good"
    )
  )
  [ -n "$found" ]
}

# With the lock held no trial is at work, so one that is marked was cut off: a reset, a power cut. Twice is a failure.
note_cut_off_trials() {
  for mark in "$root"/canary/*.trying; do
    [ -f "$mark" ] || continue
    digest=${mark##*/}
    digest=${digest%.trying}
    is_digest "$digest" || continue
    if [ -f "$root/canary/$digest.unknown" ]; then
      words=$( (printf '%s\n' "$cut_off" >"$root/incoming/verdict.$$") 2>&1) || fail write "$(oneline "$words")"
      record_verdict "$digest" failed "$root/incoming/verdict.$$"
    else
      must mv -f -- "$mark" "$root/canary/$digest.unknown"
      must sync -- "$root/canary"
    fi
  done
}
cut_off='{"cut_off":2,"passed":false,"failed":["its trial was cut off twice, by a reset or a power cut"]}'

# Keep the report of a trial as the bundle's verdict. The marks go last: until then the verdict is unknown.
record_verdict() { # digest passed|failed report
  own_verdict=$root/canary/$1.json other_verdict=$root/canary/$1.failed.json
  if [ "$2" = failed ]; then own_verdict=$other_verdict other_verdict=$root/canary/$1.json; fi
  must sync -- "$3"
  must mv -f -- "$3" "$own_verdict"
  must rm -f -- "$other_verdict"
  must sync -- "$root/canary"
  must rm -f -- "$root/canary/$1.trying" "$root/canary/$1.unknown"
  must sync -- "$root/canary"
}

# Use a bundle without a trial; its verdict stays what it is.
switch() {
  need_lock
  IFS= read -r digest
  IFS= read -r line
  need_digest "$digest"
  need_bundle "$digest"
  if [ "$(leads_to current)" != "$digest" ]; then
    use "$digest"
    note "$line" 2>/dev/null
  fi
  situation
  answer done
}

# The bundle to go back to: the last one that passed its trial, other than $1, read back and compared. Its digest is left
# in $fallback, empty when there is none; $damaged and $unsigned name one that was passed over.
find_fallback() { # digest to leave, script that checks a signature
  fallback='' damaged='' unsigned='' seen=" $1 "
  for candidate in $(
    leads_to previous
    echo
    tail -n 1000 -- "$root/history.jsonl" 2>/dev/null | sed -n 's/.*"bundle": "\([0-9a-f]\{64\}\)".*/\1/p' | tac
    # What the history has lost.
    (cd -- "$root/canary" 2>/dev/null && ls -t) | sed -n 's/^\([0-9a-f]\{64\}\)\.json$/\1/p'
  ); do
    case $seen in *" $candidate "*) continue ;; esac
    seen="$seen$candidate "
    [ -d "$root/bundles/$candidate" ] && [ "$(verdict_of "$candidate")" = passed ] || continue
    if ! fits "$root/bundles/$candidate" "$root/bundles/$candidate.sha256"; then
      damaged=$candidate
    elif ! is_signed "$root/bundles/$candidate" "$2"; then
      # Who may sign may have changed since it was shipped.
      unsigned=$words
    else
      fallback=$candidate
      return
    fi
  done
}

rollback() {
  need_lock
  IFS= read -r line
  IFS= read -r check
  left=$(leads_to current)
  find_fallback "${left:-none}" "$check"
  if [ -z "$fallback" ]; then
    [ -z "$unsigned" ] || fail signature "$(oneline "$unsigned")"
    [ -z "$damaged" ] || fail damaged "bundles/$damaged"
    fail nothing "no other bundle here has passed its trial"
  fi
  use "$fallback"
  # Which one it is going to be, the client did not know.
  case $line in
    *'"bundle": null'*) line=${line%%'"bundle": null'*}'"bundle": "'$fallback'"'${line#*'"bundle": null'} ;;
  esac
  note "$line" 2>/dev/null
  answer back "$fallback"
  situation
  answer done
}

# Try a bundle while `current` stays as it is. Only a report that edge wrote for this bundle and this ship is a verdict:
# passed switches; failed changes nothing, or goes back where the bundle was in use without a trial; anything else is
# untried. This goes on to its end whether or not anybody is listening by then.
trial() {
  need_lock
  IFS= read -r digest
  IFS= read -r trial_nonce
  IFS= read -r check
  IFS= read -r line_passed
  IFS= read -r line_failed
  need_digest "$digest"
  case $trial_nonce in '' | *[!0-9a-f]*) fail protocol "not a nonce" ;; esac
  set --
  while IFS= read -r word && [ -n "$word" ]; do set -- "$@" "$word"; done
  [ -n "$edge" ] || fail protocol "there is no edge"
  need_bundle "$digest"
  trap '' HUP PIPE INT TERM
  failure=$root/canary/$digest.failed.json
  if [ -f "$failure" ] && case $(head -c 64 -- "$failure") in '{"cut_off":'*) ;; *) false ;; esac; then
    # A trial that resets the device is not begun a third time.
    answer report "$(base64 -w0 <"$failure")"
    verdict=failed
    trial_failed
  else
    run_trial "$@"
  fi
  answer result "$verdict"
  situation
  answer done
  trap - HUP PIPE INT TERM
}

run_trial() { # options of edge canary
  against=$(leads_to current)
  [ "$against" != "$digest" ] || against=$(leads_to previous)
  [ -n "$against" ] && [ "$against" != "$digest" ] && [ -d "$root/bundles/$against" ] || against=''
  report=$root/incoming/canary.$$.json log=$root/incoming/canary.$$.log
  words=$( (printf '%s\n' "$trial_nonce" >"$root/canary/$digest.trying") 2>&1) || fail write "$(oneline "$words")"
  must sync -- "$root/canary/$digest.trying"
  must sync -- "$root/canary"
  "$edge" canary "$root/bundles/$digest" ${against:+--against "$root/bundles/$against"} --state "$root" --json \
    --nonce "$trial_nonce" "$@" >"$report" 2>"$log" </dev/null 3>&- 9>&-
  code=$?
  begins='{"program":"edge canary","format":2,"bundle":"'$digest'","nonce":"'$trial_nonce'","passed":'
  verdict=untried
  case $code:$(head -c 4096 -- "$report" 2>/dev/null | tr -d '\0') in
    "0:${begins}true,"*) verdict=passed ;;
    "1:${begins}false,"*) verdict=failed ;;
  esac
  # Nothing is answered before the verdict is kept: a client that does not read must not hold the device up.
  report64=$(head -c 262144 -- "$report" 2>/dev/null | base64 -w0)
  case $verdict in
    passed)
      record_verdict "$digest" passed "$report"
      if [ "$(leads_to current)" != "$digest" ]; then
        use "$digest"
        note "$line_passed" 2>/dev/null
      fi
      ;;
    failed)
      record_verdict "$digest" failed "$report"
      trial_failed
      ;;
    *)
      must rm -f -- "$root/canary/$digest.trying"
      must sync -- "$root/canary"
      ;;
  esac
  answer code "$code"
  answer report "$report64"
  answer log "$(tail -c 2000 -- "$log" 2>/dev/null | base64 -w0)"
  if [ "$verdict" = untried ]; then name_foreign; fi
}

# A bundle that was in use without a trial, and has failed it now, makes way for the last one that passed; no bundle at
# all is better than one that does not work.
trial_failed() {
  if [ "$(leads_to current)" = "$digest" ]; then
    find_fallback "$digest" "$check"
    if [ -n "$fallback" ]; then
      point current "$fallback"
    else
      must rm -f -- "$root/current"
      must sync -- "$root"
    fi
    answer left "$digest"
  fi
  if [ "$(leads_to previous)" = "$digest" ] || [ "$(leads_to previous)" = "$(leads_to current)" ]; then
    must rm -f -- "$root/previous"
    must sync -- "$root"
  fi
  note "$line_failed" 2>/dev/null
}

# A script of the same name is known by what it says to --version.
name_foreign() {
  words=$("$edge" --version </dev/null 2>&1 3>&- 9>&- | head -c 2000 | tr -d '\0')
  case $words in 'edge '[0-9]*) ;; *) answer foreign "$edge" ;; esac
}

# ---- looking, clearing up, fetching ----------------------------------------------------------------------------------

status() {
  for list in "$root"/bundles/*.sha256; do
    [ -f "$list" ] || continue
    digest=${list##*/}
    digest=${digest%.sha256}
    is_digest "$digest" || continue
    verdict=$(verdict_of "$digest")
    # The manifest has one form: these two lines of it are enough.
    answer bundle "$digest" "$verdict" "$(stat -c %Y -- "$list")" \
      "$(sed -n '/^  "\(name\|profile\)": /p' -- "$root/bundles/$digest/bundle.json" 2>/dev/null | head -c 4096 | base64 -w0)"
  done
  answer history "$(tail -n 20 -- "$root/history.jsonl" 2>/dev/null | tail -c 32768 | base64 -w0)"
  [ -z "$edge" ] || answer version "$(oneline "$("$edge" --version 2>&1 </dev/null)")"
  answer done
}

# Whether the bundle that is in use, or $digest, is whole.
verify() {
  IFS= read -r digest
  need_digest "$digest"
  if fits "$root/bundles/$digest" "$root/bundles/$digest.sha256"; then answer whole; else answer damaged; fi
  answer done
}

# Keep current, previous and the $spare newest others; throw out what no bundle holds any more.
gc() {
  need_lock
  IFS= read -r spare
  need_number "$spare"
  one=$(leads_to current) two=$(leads_to previous)
  # Signatures may change again: a bundle that passed stays, regardless of its signer.
  find_fallback "${one:-none}" "$(printf 'exit 0' | base64 -w0)"
  find "$root/bundles" -maxdepth 1 -name '*.sha256' -printf '%T@ %f\n' | sort -rn | cut -d ' ' -f 2 |
    while IFS= read -r name; do
      digest=${name%.sha256}
      is_digest "$digest" || continue
      case $digest in "$one" | "$two" | "$fallback") continue ;; esac
      if [ "$spare" -gt 0 ]; then
        spare=$((spare - 1))
        continue
      fi
      rm -f -- "$root/bundles/$name" "$root/canary/$digest.json" "$root/canary/$digest.failed.json" \
        "$root/canary/$digest.trying" "$root/canary/$digest.unknown"
      mv -T -- "$root/bundles/$digest" "$root/incoming/old.$$"
      rm -rf -- "$root/incoming/old.$$" "$root/engines/$digest"
      answer removed "$digest"
    done
  # Folders without a list were never finished.
  for folder in "$root"/bundles/*; do
    case ${folder##*/} in *.sha256 | "$one" | "$two" | "$fallback") continue ;; esac
    [ -f "$folder.sha256" ] || rm -rf -- "$folder"
  done
  find "$root/incoming" -mindepth 1 -maxdepth 1 ! -name "beat.$$" -exec rm -rf -- {} +
  # In memory: this is what one does when the disk is full.
  kept=$(cat "$root"/bundles/*.sha256 2>/dev/null | cut -c 1-64 | sort -u)
  find "$root/blobs/sha256" -type f -printf '%f\n' |
    while IFS= read -r sha; do
      case $kept in *"$sha"*) continue ;; esac
      answer freed "$(stat -c %s -- "$root/blobs/sha256/$sha")"
      rm -f -- "$root/blobs/sha256/$sha"
    done
  answer done
}

# Files below the folders that are named, with digest and size; a name that a line cannot hold is left out.
listing() {
  while IFS= read -r folder && [ -n "$folder" ]; do
    need_path "$folder"
    [ -d "$root/$folder" ] || continue
    (cd -- "$root" && find "$folder" -type f ! -name '*.lock' ! -name '.*' ! -path '*[[:cntrl:]\\]*' \
      -exec sha256sum {} +) 2>/dev/null |
      while IFS= read -r line; do answer entry "$line"; done
  done
  answer done
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
    answer gone "it went away while others were read"
  elif [ "$size" -gt "$most" ]; then
    answer gone "$size bytes are more than a file of this kind has"
  else
    answer data "$size"
    # As many bytes as were said, whatever happens to the file.
    cat -- "$root/$path" /dev/zero 2>/dev/null | head -c "$size" >&3
  fi
}

# ---- the conversation ------------------------------------------------------------------------------------------------

printf '\n' >&3
answer ready 1
while
  tell_beat waits
  IFS= read -r request
do
  tell_beat works
  case $request in
    hello | look | begin | want | seal | adopt | tree | switch | rollback | bootstrap | trial | status | verify | gc | listing | get)
      "$request"
      ;;
    put)
      tell_beat waits
      put
      ;;
    keepalive) ;;
    *) fail protocol "no such request" ;;
  esac
done
