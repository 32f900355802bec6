import { Option } from 'commander';
import { parseChoice } from './parse.js';

/** An option that takes one of some words: its check, its help and the shells' completion know them from here. */
export function choiceOption(flags: string, description: string, choices: readonly string[]): Option {
  const option = new Option(flags, description);
  return option
    .choices(choices)
    .argParser((text: string) => parseChoice(text, option.long ?? flags, choices));
}
