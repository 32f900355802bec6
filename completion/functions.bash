# shellcheck shell=bash
# The functions of bash's completion, below the tables that completion-bash.ts makes of the commands' definitions.
# Written for bash 4.2 and up, without the package bash-completion. What a shell waits for at a key stroke is bounded, and
# nothing is ever printed: VMs are asked for through libvirt's read-only socket, which asks for no password; sessions are
# directories.

# _chunkmount_names: keeps what can be the name of a tree.
_chunkmount_names() {
  LC_ALL=C grep --extended-regexp --line-regexp '[A-Za-z0-9_][A-Za-z0-9_.+@:-]*' 2>/dev/null
}

# _chunkmount_vms URI: the VMs that libvirt knows.
_chunkmount_vms() {
  local uri=$1
  : "${uri:=${VIRSH_DEFAULT_CONNECT_URI:-${LIBVIRT_DEFAULT_URI:-qemu:///system}}}"
  timeout --kill-after=1 2 virsh --quiet --readonly --connect "$uri" list --all --name </dev/null 2>/dev/null |
    _chunkmount_names
}

# _chunkmount_state STATEDIR KIND: the names of sessions or boots.
_chunkmount_state() {
  local state=$1 entry
  if [[ -z $state ]]; then
    state=${CHUNKMOUNT_STATEDIR:-/var/lib/chunkmount}
    [[ $EUID == 0 || -n $CHUNKMOUNT_STATEDIR ]] || state=${XDG_STATE_HOME:-$HOME/.local/state}/chunkmount
  fi
  for entry in "$state/$2"/*/; do
    [[ -d $entry ]] || continue
    entry=${entry%/}
    printf '%s\n' "${entry##*/}"
  done | _chunkmount_names
}

# _chunkmount_offer KIND VALUE: puts what VALUE can become into COMPREPLY. KIND may be followed by words.
_chunkmount_offer() {
  local kind=$1 value=$2 head='' candidate
  local -a found=()
  shift 2
  case $kind in
    vms | sessions | files) [[ $value != *,* ]] || head=${value%,*}, ;;
  esac
  value=${value#"$head"}
  case $kind in
    # What is quoted, readline completes better: it does so where we offer nothing.
    files | directories) [[ $value != *[\"\'\\]* ]] || return 0 ;;
    *) compopt +o default 2>/dev/null ;;
  esac
  case $kind in
    words) mapfile -t found < <(compgen -W "$*" -- "$value") ;;
    vms) mapfile -t found < <(compgen -W "all $(_chunkmount_vms "$connect")" -- "$value") ;;
    sessions | boots) mapfile -t found < <(compgen -W "$(_chunkmount_state "$statedir" "$kind")" -- "$value") ;;
    users) mapfile -t found < <(compgen -u -- "$value") ;;
    files) mapfile -t found < <(compgen -f -- "$value") ;;
    directories) mapfile -t found < <(compgen -d -- "$value") ;;
  esac
  [[ $kind != files && $kind != directories ]] || compopt -o filenames 2>/dev/null
  for candidate in "${found[@]}"; do
    candidate=$before$head$candidate
    COMPREPLY+=("${candidate:skip}")
  done
}

# The command of chunkmount run begins at word $1.
_chunkmount_command() {
  if declare -F _command_offset >/dev/null; then
    _command_offset "$1"
  elif ((COMP_CWORD == $1)); then
    mapfile -t COMPREPLY < <(compgen -c -- "${COMP_WORDS[COMP_CWORD]}")
  fi
}

_chunkmount() {
  local REPLY verb='' option='' connect='' statedir='' before='' word current token
  local -i index skip position=0
  local -a words=()
  COMPREPLY=()
  # Readline splits words at = and :, which are put together again.
  for ((index = 1; index <= COMP_CWORD; index++)); do
    word=${COMP_WORDS[index]}
    if ((${#words[@]} > 0)) && [[ $word == [=:]* || ${COMP_WORDS[index - 1]} == [=:] ]]; then
      words[${#words[@]} - 1]+=$word
    else
      words+=("$word")
    fi
    if [[ $word == -- && $index -lt $COMP_CWORD ]]; then
      _chunkmount_command $((index + 1))
      return 0
    fi
  done
  current=${words[${#words[@]} - 1]}
  token=${COMP_WORDS[COMP_CWORD]}
  [[ $token != [=:]* ]] || token=''
  skip=$((${#current} - ${#token}))
  for word in "${words[@]:0:${#words[@]} - 1}"; do
    if [[ -n $option ]]; then
      case $option in
        --connect) connect=$word ;;
        --statedir) statedir=$word ;;
      esac
      option=''
      continue
    fi
    case $word in
      --connect=*) connect=${word#*=} ;;
      --statedir=*) statedir=${word#*=} ;;
      --*=*) ;;
      --*)
        _chunkmount_options "$verb"
        [[ " $REPLY " != *" $word= "* ]] || option=$word
        ;;
      -*) ;;
      *)
        if [[ -z $verb && " $_chunkmount_verbs " == *" $word "* ]]; then verb=$word; else position+=1; fi
        ;;
    esac
  done
  if [[ -n $option ]]; then
    _chunkmount_value "$verb" "$option" "$current"
  elif [[ $current == --*=* ]]; then
    option=${current%%=*}
    before=$option=
    _chunkmount_value "$verb" "$option" "${current#*=}"
  elif [[ $current == -* ]]; then
    _chunkmount_options "$verb"
    _chunkmount_offer words "$current" "$REPLY"
    [[ ${#COMPREPLY[@]} != 1 || ${COMPREPLY[0]} != *= ]] || compopt -o nospace 2>/dev/null
  elif [[ -z $verb ]]; then
    _chunkmount_offer words "$current" "$_chunkmount_verbs"
  else
    _chunkmount_argument "$verb" "$position" "$current"
  fi
  return 0
}

complete -o default -F _chunkmount chunkmount
