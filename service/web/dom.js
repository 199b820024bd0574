// Building elements. What a service says only ever becomes text, so nothing it says can become markup.

export function byId(id) {
  return document.getElementById(id);
}

/** `properties` are set on the element as they are named there; string children become text. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A button that cannot be pressed again while its action is under way. */
export function actionButton(label, action) {
  const button = element("button", { type: "button" }, label);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await action();
    } finally {
      button.disabled = false;
    }
  });
  return button;
}

/** Runs `draw` before the next frame, however often it is asked for until then. */
export function oncePerFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };
}
