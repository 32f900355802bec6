import { Option } from 'commander';
import { parseList } from './parse.js';

/** An option that takes `a,b,c`. Given more than once it takes all of them: nobody who names two VMs wants the first to be forgotten. */
export function listOption(flags: string, description: string): Option {
  return new Option(flags, description).argParser((text: string, before: string | undefined) =>
    before === undefined ? text : `${before},${text}`,
  );
}

/** `--disk` of the commands that read a tree; its value is a list already. */
export function disksOption(): Option {
  return new Option('--disk <targets>', 'only these disks, separated by commas').argParser(
    (text: string, before: readonly string[] = []) => [...new Set([...before, ...parseList(text, '--disk')])],
  );
}
