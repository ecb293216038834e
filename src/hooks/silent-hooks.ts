import { LifecycleHooks } from './lifecycle-hooks.js';

class SilentHooks extends LifecycleHooks {
  override hears(): boolean {
    return false;
  }

  override emit(): void {}
}

/** For a limiter inside a pool or a gate, which tells what it does in events of its own. */
export const SILENT_HOOKS: LifecycleHooks = new SilentHooks();
