import * as fs from 'node:fs';
import { Command } from 'commander';
import { usage } from '../errors.js';
import { packageFile } from '../host/program-files.js';
import { bashTables } from './completion-bash.js';
import { type CompletedVerb, completedVerbs } from './completion-model.js';
import { zshTables } from './completion-zsh.js';
import { type CommandContext, type CommandModule, printResult } from './context.js';

const SHELLS: Readonly<Record<string, (verbs: readonly CompletedVerb[], defaultVerb: string) => string>> = {
  bash: bashTables,
  zsh: zshTables,
};

const HELP = `
Prints a script that completes commands, options, their values, VMs, sessions and files. The Debian package has both
where the shells look for them. bash reads it when a new shell starts and the package bash-completion is there; zsh when
compinit runs.

Exit status: 0 printed; 2 usage.

Examples:
  chunkmount completion bash > /usr/share/bash-completion/completions/chunkmount
  chunkmount completion zsh > /usr/local/share/zsh/site-functions/_chunkmount
  source <(chunkmount completion bash)                 in this shell alone`;

/** Prints the completion of a shell for all commands of `program`, the default one of which is `defaultVerb`. */
export function runCompletion(
  shell: string,
  program: Command,
  defaultVerb: string,
  context: CommandContext,
): void {
  const make = Object.hasOwn(SHELLS, shell) ? SHELLS[shell] : undefined;
  if (make === undefined)
    throw usage(`${JSON.stringify(shell)} is no shell that can be completed for`, {
      hint: `one of: ${Object.keys(SHELLS).join(', ')}`,
    });
  const functions = packageFile(`completion/functions.${shell}`);
  const script = `${make(completedVerbs(program), defaultVerb)}\n${fs.readFileSync(functions, 'utf8')}`;
  printResult(context, { shell, script }, [script.trimEnd()]);
}

/** `defaultVerb`: the one that is meant when none is given. */
export const completionCommand =
  (defaultVerb: string): CommandModule =>
  (context) => {
    const shell = new Command().createArgument('<shell>').choices(Object.keys(SHELLS));
    const command = new Command('completion')
      .description('print the completion script of a shell')
      .addArgument(shell)
      .addHelpText('after', HELP);
    return command.action((name: string) => runCompletion(name, command.parent!, defaultVerb, context()));
  };
