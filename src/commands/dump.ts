import { Command, Option } from 'commander';
import { COMPRESSOR_NAMES, findCompressor } from '../backup/dump/compressor.js';
import { type DumpResult, dumpSource } from '../backup/dump/dump.js';
import type { DumpFormat } from '../backup/dump/image.js';
import { formatBytes } from '../report/format.js';
import { addBackupOptions, type BackupOptions, backupSettings } from './backup-options.js';
import { type CommandContext, type CommandModule, printResult } from './context.js';
import { countOf } from './count-of.js';
import { failuresOf, forEachName, throwFailures } from './each.js';
import { givenOptions } from './modes.js';
import { addSourceOptions, type SourceOptions, selectSources } from './sources.js';

export interface DumpOptions extends BackupOptions, Omit<SourceOptions, 'format'> {
  format: DumpFormat;
  /** A compressor's name. */
  compress?: string;
  date?: boolean;
  imageFormat?: string;
}

/** Shared with mount and run, where they say how a tree is shown. */
const TREE_OPTIONS = ['--chunk-size', '--transport', '--direct-io', '--allow-other'];

const IMAGE_FORMAT_OPTION = '--image-format';

const HELP = `
Freezes the disks as mount does, writes an image of each, and gives the VM its disks back, also when that fails or is
interrupted. Prints the files, a line each. For the VM mail01 with the disk vda they are, in BACKUPDIR/mail01.dump/:
  mail01_vda.raw      or .qcow2, and .gz .bz2 .lzo .xz .lz .zst behind it with --compress; zeros are holes
  mail01.xml          the domain; mail01.nvram.fd if it has an NVRAM, mail01.state (the memory) with --state
  mail01.sha256       for sha256sum -c in that directory
While they are written their names end in .partial. The dump before is replaced when the new one is complete, and not
earlier, so there must be room for both; with --date the time of the snapshot goes into all names
(mail01_vda-20261120T231122Z.raw.zst), and earlier dumps stay until somebody removes them.

virt-backup has its dumps in BACKUPDIR/mail01/. Here a tree is mounted there, and only there while it is mounted: a
dump in its place would keep mount from working, and an rsync --delete from there would put the dump in the place of
the trees that were backed up. So collect dumps from BACKUPDIR/mail01.dump/. chunkmount cleanup removes no dump but
the remains of one that was cut off.

It reads and writes by itself, so it gives way to others when it is started so: nice -n 19 ionice -c 3 chunkmount dump …
--chunk-size, --transport, --direct-io and --allow-other say how trees are shown, and change nothing in a dump.
gzip is what virt-backup takes for --compress; zstd is several times as fast, and the VM gets its disks back sooner.

Exit status: 0 dumped; 1 failed, and the dump before is still there, or it was dumped and the VM could not get its
disks back (run chunkmount cleanup); 2 usage; 3 locked, mounted, or too many backups; 5 some VMs are dumped, some not.

Examples:
  chunkmount dump --vm=mail01 --compress=zstd
  chunkmount dump --vm=mail01,devsrv --exclude=vdb --format=qcow2 --date
  chunkmount dump --image=disk.qcow2 --name=demo --backupdir=/mnt
  zstdcat mail01_vda.raw.zst | dd of=/dev/vg0/mail01 bs=1M`;

/** Dumps VMs or images, one after the other. */
export async function runDump(options: DumpOptions, context: CommandContext): Promise<void> {
  const settings = backupSettings(options);
  const { format, date: dated = false } = options;
  const { reporter, signal, insisted } = context;
  const compressor = options.compress === undefined ? undefined : findCompressor(options.compress);
  const sources = await selectSources(sourceOptions(options), signal);
  const byName = new Map(sources.map((source) => [source.name, source]));
  const outcomes = await forEachName([...byName.keys()], signal, async (name) => {
    const source = byName.get(name)!;
    const session = { source, settings, command: 'dump', reporter, signal, insisted };
    const result = await dumpSource({ ...session, format, compressor, dated });
    reporter.notice(summary(result));
    return result;
  });
  const dumped = outcomes.flatMap((outcome) => (outcome.ok ? [outcome.value] : []));
  const lines = dumped.flatMap(({ files, sums }) => [...files.map((file) => file.path), sums]);
  printResult(context, { dumped, failed: failuresOf(outcomes) }, lines);
  throwFailures(outcomes, reporter);
}

/** `--format` is that of the dump here. */
function sourceOptions({ format: _, imageFormat, ...options }: DumpOptions): SourceOptions {
  const given = imageFormat === undefined ? {} : { format: imageFormat };
  return { ...options, ...given, formatOption: IMAGE_FORMAT_OPTION };
}

function summary({ name, directory, files }: DumpResult): string {
  const disks = files.filter(({ disk }) => disk !== undefined);
  const size = disks.reduce((sum, { diskSize = 0 }) => sum + diskSize, 0);
  const bytes = disks.reduce((sum, file) => sum + file.size, 0);
  const became = bytes === size ? '' : `, ${formatBytes(bytes)} as written`;
  return `${name}: ${countOf(disks.length, 'disk')} of ${formatBytes(size)}${became} dumped to ${directory}`;
}

export const dumpCommand: CommandModule = (context) =>
  addBackupOptions(addSourceOptions(new Command('dump'), IMAGE_FORMAT_OPTION))
    .description('freeze disks, write images of them, and undo the snapshot')
    .addOption(new Option('--format <format>', 'of the images').choices(['raw', 'qcow2']).default('raw'))
    .addOption(
      new Option('--compress [program]', 'compress the images, through this program')
        .choices(COMPRESSOR_NAMES)
        .preset('gzip'),
    )
    .option('--date', "put the snapshot's time into the names, and keep earlier dumps")
    .addHelpText('after', HELP)
    .action(async (options: DumpOptions, command: Command) => {
      const run = context();
      for (const { long } of givenOptions(command).filter((option) => TREE_OPTIONS.includes(option.long)))
        run.reporter.notice(`${long} says how a tree is shown: a dump is the same without it`);
      await runDump(options, run);
    });
