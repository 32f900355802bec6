import type { CompletedVerb, Completion } from './completion-model.js';

function offer(completion: Completion, value: string): string {
  const words = completion.kind === 'words' ? ` '${completion.words.join(' ')}'` : '';
  return `_chunkmount_offer ${completion.kind} "${value}"${words}`;
}

/** `--vm=` takes a value and `--all` none; one that may have a value is there twice. */
function optionWords({ options }: CompletedVerb): string[] {
  return options.flatMap(({ long, value }) =>
    value === 'none' ? [long] : value === 'required' ? [`${long}=`] : [long, `${long}=`],
  );
}

function optionCases(verbs: readonly CompletedVerb[], defaultVerb: string): string[] {
  return verbs.flatMap((verb) => {
    const words = optionWords(verb).join(' ');
    const own = `    ${verb.name}) REPLY='${words}' ;;`;
    return verb.name === defaultVerb ? [own, `    '') REPLY='${words} --version' ;;`] : [own];
  });
}

function valueCases(verbs: readonly CompletedVerb[], defaultVerb: string): string[] {
  return verbs.flatMap(({ name, options }) =>
    options
      .filter(({ completion }) => completion.kind !== 'nothing')
      .map(({ long, completion }) => {
        const pattern = name === defaultVerb ? `${name}:${long} | :${long}` : `${name}:${long}`;
        return `    ${pattern}) ${offer(completion, '$3')} ;;`;
      }),
  );
}

function argumentCases(verbs: readonly CompletedVerb[]): string[] {
  return verbs.flatMap(({ name, arguments: args }) =>
    args
      .filter(({ completion }) => completion.kind !== 'command')
      .map(({ completion }, position) => `    ${name}:${position}) ${offer(completion, '$3')} ;;`),
  );
}

/** The tables of bash's completion: a script to be sourced, with completion/functions.bash behind it. */
export function bashTables(verbs: readonly CompletedVerb[], defaultVerb: string): string {
  return `# bash completion for chunkmount, as "chunkmount completion bash" prints it.
# shellcheck shell=bash disable=SC2034,SC2178

_chunkmount_verbs='${verbs.map(({ name }) => name).join(' ')} help'

# _chunkmount_options VERB: its options in REPLY; those that take a value end in =.
_chunkmount_options() {
  REPLY=
  case $1 in
${optionCases(verbs, defaultVerb).join('\n')}
  esac
}

# _chunkmount_value VERB OPTION VALUE
_chunkmount_value() {
  case $1:$2 in
${valueCases(verbs, defaultVerb).join('\n')}
    *) _chunkmount_offer nothing "$3" ;;
  esac
}

# _chunkmount_argument VERB POSITION VALUE
_chunkmount_argument() {
  case $1:$2 in
${argumentCases(verbs).join('\n')}
    help:0) _chunkmount_offer words "$3" "$_chunkmount_verbs" ;;
    *) _chunkmount_offer nothing "$3" ;;
  esac
}
`;
}
