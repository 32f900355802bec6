import { Command } from 'commander';
import { ChunkmountError, usage } from '../errors.js';
import { shellWord } from '../host/shell-word.js';
import { formatBytes } from '../report/format.js';
import { type ChunkDamage, describeRun, joinDamages } from '../restore/damage.js';
import type { PlainShape } from '../restore/plain-tree.js';
import type { ChunkDifference, Problem } from '../restore/problem.js';
import { EVERYTHING, type Sample } from '../restore/sample.js';
import { type Comparison, type DiskReport, type VerifyReport, verifyTree } from '../restore/verify.js';
import { type CommandContext, type CommandModule, printResult } from './context.js';
import { countOf } from './count-of.js';
import { disksOption } from './list-option.js';
import { addModes, type Mode } from './modes.js';
import { placeArgument } from './place-option.js';
import { addPlainOptions, PLAIN_HELP, type PlainOptions, plainShape } from './plain-options.js';

export interface VerifyOptions {
  readonly tree: string;
  /** Targets; all disks if undefined. */
  readonly disks?: readonly string[] | undefined;
  /** The share of chunks whose content is read: above 0, at most 1. All if undefined. */
  readonly sample?: number | undefined;
  /** A tree that this one shall be equal to. */
  readonly against?: string | undefined;
  /** The tree is a copy of a chunkfs mount. */
  readonly plain?: PlainShape | undefined;
}

/** The options as commander has them. */
interface VerifyFlags extends Omit<VerifyOptions, 'tree' | 'disks' | 'plain'>, PlainOptions {
  readonly disk?: readonly string[];
}

/** A person reads no more; `--json` has them all. */
const MAX_SHOWN = 100;

const HELP = `
Reads every chunk and compares it with its hash; looks for missing files, files that do not belong there, and a manifest or
domain XML that is damaged or of another VM. Needs nothing but the tree; "xxhsum -c vda.xxh64" in it checks the chunks, too.

With --sample the content of that share of the chunks is read, others each time, and only the size of the rest.
With --against, chunks that differ from another tree's (by its sums; it is not read), and disks that only one of them has, are
problems as well: the tree may be intact all the same, as one of another day is, and that is said. In --json "intact" is about
the tree alone, and "against" about the other one.
${PLAIN_HELP}

Exit status: 0 intact; 1 failed; 2 wrong usage; 4 something is missing or damaged, or differs; 128+n ended by signal n.

Examples:
  chunkmount verify /backup/mail01
  chunkmount verify /backup/mail01 --sample=5%
  chunkmount verify /backup/mail01 --against=/var/lib/libvirt/backup/mail01`;

const MODES: readonly Mode[] = [
  {
    name: 'verify --size',
    when: ({ size }) => size !== undefined,
    // --against is refused by itself, as --chunk-size is without --size.
    takes: ['--size', '--chunk-size', '--disk', '--against'],
    instead: { '--sample': 'without sums only sizes are looked at, and no content' },
  },
];

export const verifyCommand: CommandModule = (context) => {
  const command = new Command('verify')
    .summary('check that a tree is complete and undamaged')
    .description('Checks that a tree is complete and undamaged.')
    .addArgument(placeArgument('<tree>', 'the directory that holds manifest.json'))
    .addOption(disksOption())
    .option('--sample <percent>', 'read only that share of the chunks, for example 5%', parseShare)
    .option('--against <tree>', 'another tree that this one shall be equal to')
    .addHelpText('after', HELP);
  return addModes(addPlainOptions(command), MODES).action(async (tree: string, flags: VerifyFlags) => {
    const { disk: disks, sample, against } = flags;
    await runVerify({ tree, disks, sample, against, plain: plainShape(flags) }, context());
  });
};

/** `5%`, `0.5%`. */
function parseShare(text: string): number {
  const match = /^([0-9]{1,3}(?:\.[0-9]{1,6})?)%$/.exec(text);
  const percent = match === null ? Number.NaN : Number(match[1]);
  if (percent > 0 && percent <= 100) return percent / 100;
  throw usage(`--sample=${text} is no share`, { hint: 'give a percentage above 0, for example --sample=5%' });
}

/** Prints what was found, then throws an error of kind `integrity` if anything is wrong. */
export async function runVerify(options: VerifyOptions, context: CommandContext): Promise<void> {
  const { reporter, signal } = context;
  const { tree, disks, against, plain } = options;
  const sample: Sample =
    options.sample === undefined ? EVERYTHING : { share: options.sample, start: Math.random() };
  const report = await verifyTree({ tree, disks, against, plain, sample, reporter, signal });
  printResult(context, report, lines(report));
  if (!report.intact) throw damaged(report);
  if (report.against?.equal === false) throw unequal(report, report.against);
}

const TAKE_ANOTHER =
  'take what is missing or damaged from another copy of this backup; chunkmount restore --keep-going restores the rest';

/** A manifest that cannot be read is the only problem, and may be all right: of a newer format, or not where it was looked for. */
function damaged({ tree, problemCount, problems: [first] }: VerifyReport): Error {
  return new ChunkmountError('integrity', `${tree} has ${countOf(problemCount, 'problem')}`, {
    hint: first?.kind === 'manifest' && first.hint !== undefined ? first.hint : TAKE_ANOTHER,
    details: { problems: problemCount },
  });
}

/** Nothing is to be restored: the other tree may just be the backup of another day. */
function unequal({ tree, problemCount }: VerifyReport, { tree: other, differenceCount }: Comparison): Error {
  const sentence = `${tree} is intact, but not equal to ${other}: ${countOf(differenceCount, 'difference')}`;
  const diff = `chunkmount diff ${shellWord(other)} ${shellWord(tree)}`;
  return new ChunkmountError('integrity', sentence, {
    hint: `if it is to be a copy of that one, copy it again; between two backups it is what changed: ${diff}`,
    details: { problems: problemCount, differences: differenceCount },
  });
}

function lines(report: VerifyReport): string[] {
  const { name, snapshotTime, consistency, hasSums, disks } = report;
  const problems = problemLines(report.problems);
  return [
    ...(name === null ? [] : [`${name}: snapshot of ${snapshotTime}, ${consistency}-consistent`]),
    ...disks.map((disk) => (hasSums ? diskLine(disk) : plainDiskLine(disk))),
    ...problems.slice(0, MAX_SHOWN),
    ...(problems.length > MAX_SHOWN
      ? [`and ${problems.length - MAX_SHOWN} more lines: --json has them all`]
      : []),
    conclusion(report),
  ];
}

function conclusion({ intact, against, hasSums }: VerifyReport): string {
  if (!intact) return 'DAMAGED';
  if (against?.equal === false) return `intact, but not equal to ${against.tree}`;
  return hasSums ? 'intact' : 'complete; there are no sums, so nobody can tell whether the content is right';
}

function plainDiskLine({ disk, size, chunks }: DiskReport): string {
  return `${disk}: ${formatBytes(size)}, ${countOf(chunks, 'chunk')} looked for`;
}

function diskLine({ disk, size, chunks, verified }: DiskReport): string {
  return `${disk}: ${formatBytes(size)}, ${verified} of ${countOf(chunks, 'chunk')} read and right`;
}

function problemLines(problems: readonly Problem[]): string[] {
  const damages: ChunkDamage[] = [];
  const others: string[] = [];
  for (const problem of problems) {
    if ('message' in problem) others.push(problem.message);
    else if (problem.kind === 'differs') others.push(differenceLine(problem));
    else damages.push(problem);
  }
  return [...joinDamages(damages).map(describeRun), ...others];
}

function differenceLine({ path, expected, found }: ChunkDifference): string {
  return `${path} differs: hash ${found} here, ${expected} there`;
}
