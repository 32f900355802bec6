import { Argument, Option } from 'commander';
import { usage } from '../errors.js';

/**
 * An option that says where something is or goes. It cannot be empty: in a script that is a variable which was never set, and Node takes
 * it for the current directory.
 */
export function placeOption(flags: string, description: string): Option {
  const option = new Option(flags, description);
  return option.argParser((text: string) => {
    if (text !== '') return text;
    throw usage(`${option.long} is empty`, { hint: 'say where, or leave it out' });
  });
}

/** The same for an argument. */
export function placeArgument(name: string, description: string): Argument {
  const argument = new Argument(name, description);
  return argument.argParser((text: string) => {
    if (text !== '') return text;
    throw usage(`<${argument.name()}> is empty`, { hint: `give ${description}` });
  });
}
