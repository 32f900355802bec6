import type { Argument, Command, Option } from 'commander';

/** What can be said of a value while it is typed. `vms`, `sessions` and `boots` are looked up then. */
export type Completion =
  | { readonly kind: 'words'; readonly words: readonly string[] }
  | {
      readonly kind: 'vms' | 'sessions' | 'boots' | 'files' | 'directories' | 'users' | 'command' | 'nothing';
    };

export interface CompletedOption {
  /** With its dashes. */
  readonly long: string;
  readonly description: string;
  readonly value: 'none' | 'optional' | 'required';
  readonly completion: Completion;
}

export interface CompletedArgument {
  readonly name: string;
  readonly completion: Completion;
}

export interface CompletedVerb {
  readonly name: string;
  readonly summary: string;
  readonly options: readonly CompletedOption[];
  readonly arguments: readonly CompletedArgument[];
}

/** Of a value's name, as help shows it. */
const BY_NAME: Readonly<Record<string, Completion>> = {
  dir: { kind: 'directories' },
  tree: { kind: 'directories' },
  tree1: { kind: 'directories' },
  tree2: { kind: 'directories' },
  chain: { kind: 'directories' },
  mountpoint: { kind: 'directories' },
  file: { kind: 'files' },
  files: { kind: 'files' },
  path: { kind: 'files' },
  'user[:group]': { kind: 'users' },
  uri: { kind: 'words', words: ['qemu:///system', 'qemu:///session'] },
  command: { kind: 'command' },
};

const NOTHING: Completion = { kind: 'nothing' };

/** Verbs whose names are those of sessions; elsewhere `--vm` names VMs, and `--name` something new. */
const OF_SESSIONS = ['cleanup', 'unlock'];

function namesOf(verb: string, long: string): Completion | undefined {
  if (long === '--finish' || long === '--discard') return { kind: 'boots' };
  if (OF_SESSIONS.includes(verb) && (long === '--vm' || long === '--name')) return { kind: 'sessions' };
  return long === '--vm' ? { kind: 'vms' } : undefined;
}

function completionOf(name: string, choices: readonly string[] | undefined): Completion {
  if (choices !== undefined) return { kind: 'words', words: choices };
  return Object.hasOwn(BY_NAME, name) ? BY_NAME[name]! : NOTHING;
}

function ofOption(verb: string, { flags, long, description, ...option }: Option): CompletedOption {
  const value = option.required ? 'required' : option.optional ? 'optional' : 'none';
  const name = /[<[](.*)[>\]]$/.exec(flags)?.[1] ?? '';
  const completion = namesOf(verb, long!) ?? completionOf(name.replace(/\.\.\.$/, ''), option.argChoices);
  return { long: long!, description, value, completion: value === 'none' ? NOTHING : completion };
}

function ofArgument(argument: Argument): CompletedArgument {
  return { name: argument.name(), completion: completionOf(argument.name(), argument.argChoices) };
}

const HELP: CompletedOption = {
  long: '--help',
  description: 'say what it does',
  value: 'none',
  completion: NOTHING,
};

function optionsOf(command: Command, verb: string): CompletedOption[] {
  return command.options
    .filter(({ long, hidden }) => long && !hidden)
    .map((option) => ofOption(verb, option));
}

/** What shells need to know of a program and its verbs: everything comes from their definitions. */
export function completedVerbs(program: Command): CompletedVerb[] {
  const shared = optionsOf(program, '').filter(({ long }) => long !== '--version');
  return program.commands.map((command) => ({
    name: command.name(),
    summary: command.summary() || command.description(),
    options: [...optionsOf(command, command.name()), ...shared, HELP],
    arguments: command.registeredArguments.map(ofArgument),
  }));
}
