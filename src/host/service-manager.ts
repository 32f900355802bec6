import { run } from './exec.js';

const TIMEOUT_MS = 10_000;

/**
 * Tells the service manager that started us, if it wants to know (systemd, Type=notify), that we are ready. systemd-notify does it in
 * our name, so the unit needs NotifyAccess=all. Throws CommandError when it cannot.
 */
export async function notifyReady(status: string): Promise<void> {
  if (process.env.NOTIFY_SOCKET === undefined) return;
  await run('systemd-notify', ['--ready', `--status=${status}`], { timeoutMs: TIMEOUT_MS });
}
