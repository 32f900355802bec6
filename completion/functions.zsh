# The functions of zsh's completion, below the tables that completion-zsh.ts makes of the commands' definitions.

# Keeps what can be the name of a tree, and offers it; lists are separated by commas.
_chunkmount_offer() {
  local -a names
  names=(${(M)@:#[A-Za-z0-9_][A-Za-z0-9_.+@:-]#})
  compset -P '*,'
  compadd -a names
}

# libvirt's read-only socket asks for no password; one that hangs is waited for 2 seconds.
_chunkmount_vms() {
  setopt local_options extended_glob
  local uri=${(Q)opt_args[--connect]:-${VIRSH_DEFAULT_CONNECT_URI:-${LIBVIRT_DEFAULT_URI:-qemu:///system}}}
  local -a found
  found=(${(f)"$(timeout --kill-after=1 2 virsh --quiet --readonly --connect $uri list --all --name </dev/null 2>/dev/null)"})
  _chunkmount_offer all $found
}

# _chunkmount_state KIND: the names of sessions or boots.
_chunkmount_state() {
  setopt local_options extended_glob
  local state=${(Q)opt_args[--statedir]:-$CHUNKMOUNT_STATEDIR}
  if [[ -z $state ]]; then
    state=/var/lib/chunkmount
    (( EUID == 0 )) || state=${XDG_STATE_HOME:-$HOME/.local/state}/chunkmount
  fi
  _chunkmount_offer $state/$1/*(N/:t)
}

_chunkmount() {
  local curcontext=$curcontext verb state line
  local -i index
  typeset -A opt_args
  # The command is the first word that is neither an option nor an option's value.
  for ((index = 2; index < CURRENT; index++)); do
    case $words[index] in
      --) break ;;
      -*) (( ! ${+_chunkmount_valued[$words[index]]} )) || index+=1 ;;
      *)
        verb=$words[index]
        break
        ;;
    esac
  done
  _chunkmount_verb "$verb"
}

_chunkmount "$@"
