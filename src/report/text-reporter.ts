import type { ProgressTask, Reporter } from './reporter.js';

/** What a reporter writes to: stderr. */
export interface TextSink {
  write(text: string): unknown;
}

/** Plain lines for logs, cron mails and pipes: progress is a line now and then. */
export class TextReporter implements Reporter {
  constructor(
    private readonly sink: TextSink,
    private readonly options: { readonly debug: boolean },
    private readonly progressIntervalMs = 30_000,
  ) {}

  debug(message: string): void {
    if (this.options.debug) this.#line(`debug: ${message}`);
  }

  notice(message: string): void {
    this.#line(message);
  }

  warn(message: string): void {
    this.#line(`warning: ${message}`);
  }

  progress(label: string, total: number): ProgressTask {
    let done = 0;
    let last = performance.now();
    return {
      advance: (amount) => {
        done += amount;
        if (performance.now() - last < this.progressIntervalMs) return;
        last = performance.now();
        this.#line(`${label}: ${total === 0 ? 100 : Math.floor((done / total) * 100)} %`);
      },
      end() {},
    };
  }

  #line(text: string): void {
    try {
      this.sink.write(`chunkmount: ${text}\n`);
    } catch {
      // Where nobody can read it, it need not be written.
    }
  }
}
