import cliProgress from 'cli-progress';
import { formatBytes } from './format.js';
import type { ProgressTask } from './reporter.js';
import { TextReporter } from './text-reporter.js';

/** Lines as TextReporter writes them, and progress bars with bytes, rate and time left. */
export class TerminalReporter extends TextReporter {
  constructor(
    private readonly stream: NodeJS.WriteStream,
    options: { readonly debug: boolean },
  ) {
    super(stream, options);
  }

  override progress(label: string, total: number): ProgressTask {
    const started = performance.now();
    const bar = new cliProgress.SingleBar({
      stream: this.stream,
      format: `${label} {bar} {percentage} % {amount} {rate}/s, {eta_formatted} left`,
      formatBar: cliProgress.Format.BarFormat,
      hideCursor: true,
      clearOnComplete: true,
      etaBuffer: 100,
    });
    let done = 0;
    const facts = () => ({
      amount: formatBytes(done),
      rate: formatBytes((done * 1000) / Math.max(1, performance.now() - started)),
    });
    bar.start(total, 0, facts());
    return {
      advance(amount) {
        done += amount;
        bar.update(done, facts());
      },
      end: () => bar.stop(),
    };
  }
}
