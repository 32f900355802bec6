import { Command } from 'commander';
import { toolVersion } from '../backup/version.js';
import { usage } from '../errors.js';
import type { CommandContext, CommandModule } from './context.js';
import { DEFAULT_VERB } from './verbs.js';

const HELP = `
Without a command it is mount: chunkmount --vm=mail01.

Examples:
  chunkmount --vm=mail01                                  freeze the disks of a VM, mount them, print where
  rsync -a --delete /var/lib/libvirt/backup/mail01/ backup:/srv/mail01/
  chunkmount cleanup --vm=mail01                          unmount, and give the VM its disks back
  chunkmount run --vm=mail01 -- sh -c 'rsync -a --delete "$CHUNKMOUNT_TREE/" backup:/srv/mail01/'
  chunkmount restore /srv/mail01 --disk=vda --to=/var/lib/libvirt/images/mail01.qcow2
  chunkmount restore --help                               what a command does, with examples; all of it: man chunkmount`;

const NO_HELP = 'chunkmount --help names all commands';

/** How commander shows help, and mistakes: in the form of our own errors. */
function configure(command: Command, name: string): void {
  command
    .exitOverride()
    .configureHelp({ showGlobalOptions: true })
    .showHelpAfterError(`  see ${name} --help`)
    .configureOutput({
      outputError: (text, write) =>
        write(
          text
            .replace(/^error: /, 'chunkmount: error: ')
            .replace('\n(Did', ' (did')
            .replace(/\.\n$/, '\n'),
        ),
    });
}

/** The program without its verbs: before they are known, mistakes can be told already. */
export function createProgram(): Command {
  const program = new Command('chunkmount')
    .description(
      'Shows the frozen disks of libvirt/KVM virtual machines as directories of chunk files, for rsync, BackupPC, restic, borg and rclone.',
    )
    .version(toolVersion())
    .option('--debug', 'say what is done and why')
    .option('--json', 'the result as one JSON object on stdout')
    .addHelpText('after', HELP)
    .addHelpText('beforeAll', ({ error, command }) => {
      // Of all that is wrong, only `help` of what is no command shows help.
      if (error) throw usage(`there is no help on ${JSON.stringify(command.args.at(-1))}`, { hint: NO_HELP });
      return '';
    });
  configure(program, 'chunkmount');
  return program;
}

/** Adds verbs to the program. `context` is asked for when one of them runs. */
export function addVerbs(
  program: Command,
  verbs: readonly CommandModule[],
  context: () => CommandContext,
): void {
  for (const create of verbs) {
    const command = create(context);
    configure(command, `chunkmount ${command.name()}`);
    program.addCommand(command, { isDefault: command.name() === DEFAULT_VERB });
  }
}
