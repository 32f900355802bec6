import type { CompletedArgument, CompletedOption, CompletedVerb, Completion } from './completion-model.js';

/** Of a description, in a specification of _arguments in single quotes. */
function quote(text: string): string {
  return text.replace(/[\\[\]:]/g, String.raw`\$&`).replaceAll("'", "'\\''");
}

/** With a space before it, a function is called with its own arguments alone. */
function action(completion: Completion): string {
  switch (completion.kind) {
    case 'words':
      return `(${completion.words.map(quote).join(' ')})`;
    case 'vms':
      return ' _chunkmount_vms';
    case 'sessions':
    case 'boots':
      return ` _chunkmount_state ${completion.kind}`;
    case 'files':
      return '_files';
    case 'directories':
      return '_files -/';
    case 'users':
      return '_users';
    case 'command':
    case 'nothing':
      return ' ';
  }
}

function optionSpec({ long, description, value, completion }: CompletedOption): string {
  const name = long.replace(/^--(no-)?/, '');
  const sign = { none: '', optional: '=-', required: '=' }[value];
  const argument =
    value === 'none' ? '' : `${value === 'optional' ? '::' : ':'}${name}:${action(completion)}`;
  return `'${long}${sign}[${quote(description)}]${argument}'`;
}

/** Of position `position`; the command itself is the first. */
function argumentSpec({ name, completion }: CompletedArgument, position: number): string {
  // As that of sudo and nice: a program, then what that program's own completion says.
  if (completion.kind === 'command')
    return `'(-)${position + 2}:${name}: _command_names -e' '*::arguments: _normal'`;
  return `'${position + 2}:${name}:${action(completion)}'`;
}

function verbCase(verb: CompletedVerb, defaultVerb: string): string {
  const specs = [...verb.options.map(optionSpec), "'1: : '", ...verb.arguments.map(argumentSpec)];
  const own = `    (${verb.name}) _arguments -S ${specs.join(' ')} ;;`;
  if (verb.name !== defaultVerb) return own;
  const bare = [
    ...verb.options.map(optionSpec),
    "'--version[say the version]'",
    "'1:command:_chunkmount_verbs'",
  ];
  return `${own}\n    ('') _arguments -S ${bare.join(' ')} ;;`;
}

/** Options whose value may be the next word. */
function valued(verbs: readonly CompletedVerb[]): string[] {
  const options = verbs.flatMap((verb) => verb.options);
  return [...new Set(options.flatMap(({ long, value }) => (value === 'required' ? [long] : [])))];
}

/** The tables of zsh's completion: with completion/functions.zsh behind it, a file called _chunkmount in a directory of fpath. */
export function zshTables(verbs: readonly CompletedVerb[], defaultVerb: string): string {
  const help = { name: 'help', summary: 'say what a command does' };
  const described = [...verbs, help].map(({ name, summary }) => `    '${name}:${quote(summary)}'`);
  return `#compdef chunkmount
# zsh completion for chunkmount, as "chunkmount completion zsh" prints it.

typeset -gA _chunkmount_valued=(${valued(verbs)
    .map((long) => `${long} 1`)
    .join(' ')})

_chunkmount_verbs() {
  local -a verbs=(
${described.join('\n')}
  )
  _describe command verbs
}

# _chunkmount_verb VERB: completes its options and arguments.
_chunkmount_verb() {
  case $1 in
${verbs.map((verb) => verbCase(verb, defaultVerb)).join('\n')}
    (help) _arguments '1: : ' '2:command:_chunkmount_verbs' ;;
    (*) _message 'no such command' ;;
  esac
}
`;
}
