// Work in small pieces, so that the page always answers: each frame spends at most BUDGET ms on the tasks in the queue.

const BUDGET = 6; // ms of a frame's 16; the browser needs time for the layout of what was drawn
const queue = [];
let requested = false;

/** Run `task(deadline)` in the coming frames until it returns false; `deadline` is a time of performance.now(). */
export function later(task) {
  if (!queue.includes(task)) queue.push(task);
  request();
}

/** Forget a task. */
export function cancel(task) {
  const index = queue.indexOf(task);
  if (index >= 0) queue.splice(index, 1);
}

/** Call a function after the next frame is painted: what needs the layout then costs none of its own. */
export function afterPaint(action) {
  requestAnimationFrame(() => setTimeout(action));
}

/** Whether there is time left. */
export const early = (deadline) => performance.now() < deadline;

function request() {
  if (requested) return;
  requested = true;
  requestAnimationFrame(frame);
}

function frame() {
  requested = false;
  const deadline = performance.now() + BUDGET;
  const unfinished = [];
  try {
    do {
      const task = queue.shift();
      if (task?.(deadline)) unfinished.push(task);
    } while (queue.length && early(deadline));
  } finally {
    // also after a task that failed, which is not run again
    queue.push(...unfinished.filter((task) => !queue.includes(task))); // behind those that had no turn
    if (queue.length) request();
  }
}
