import * as fs from 'node:fs';
import * as net from 'node:net';
import * as path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { execa } from 'execa';
import type { Requirement } from '../support/requirements.js';

const SCRIPT = path.join(import.meta.dirname, 's3-server.py');
/** Debian's own has Debian's Swift. */
const PYTHON = '/usr/bin/python3';
const PORTS = 4;

export const swift: Requirement = () =>
  fs.existsSync('/usr/lib/python3/dist-packages/swift')
    ? undefined
    : 'OpenStack Swift is missing: apt-get install python3-swift';

function startServer(directory: string, port: number) {
  return execa(PYTHON, [SCRIPT, directory, String(port)], { reject: false, stdin: 'ignore' });
}

async function listen(port: number): Promise<net.Server> {
  const server = net.createServer();
  await new Promise<void>((resolve, reject) =>
    server.listen(port, '127.0.0.1', resolve).once('error', reject),
  );
  return server;
}

/** The first of four free ports. */
async function freePorts(): Promise<number> {
  for (;;) {
    const servers = [await listen(0)];
    const { port } = servers[0]!.address() as net.AddressInfo;
    try {
      for (let i = 1; i < PORTS; i++) servers.push(await listen(port + i));
      return port;
    } catch {
      // Somebody has one of them.
    } finally {
      for (const server of servers) server.close();
    }
  }
}

async function answers(port: number): Promise<boolean> {
  return fetch(`http://127.0.0.1:${port}/`).then(
    () => true,
    () => false,
  );
}

/** An S3 server of our own with its data in `directory`, which must not exist: OpenStack Swift. */
export class S3Server {
  private constructor(
    readonly port: number,
    private readonly server: ReturnType<typeof startServer>,
  ) {}

  static async start(directory: string): Promise<S3Server> {
    fs.mkdirSync(directory);
    const port = await freePorts();
    const server = startServer(directory, port);
    for (let attempt = 0; !(await answers(port)); attempt++) {
      if (attempt === 300 || server.exitCode !== null) {
        server.kill();
        throw new Error(`Swift does not answer: ${(await server).stderr}`);
      }
      await pause(100);
    }
    return new S3Server(port, server);
  }

  /** Makes it the remote `s3` of rclone. */
  get env(): Record<string, string> {
    return {
      RCLONE_CONFIG_S3_TYPE: 's3',
      RCLONE_CONFIG_S3_PROVIDER: 'Other',
      RCLONE_CONFIG_S3_ENDPOINT: `http://127.0.0.1:${this.port}`,
      RCLONE_CONFIG_S3_ACCESS_KEY_ID: 'test:tester',
      RCLONE_CONFIG_S3_SECRET_ACCESS_KEY: 'testing',
      RCLONE_CONFIG_S3_REGION: 'us-east-1',
    };
  }

  async close(): Promise<void> {
    this.server.kill();
    await this.server;
  }
}
