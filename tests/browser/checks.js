// What the tests ask of a whole page. Each function is given to page.evaluate by its name.
(() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const pen = canvas.getContext("2d", { willReadFrequently: true });

  function rgba(color) {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = color;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  }

  function luminance(channels) {
    const linear = (v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = channels.map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  function background(node) {
    for (let e = node; e; e = e.parentElement) {
      const color = rgba(getComputedStyle(e).backgroundColor);
      if (color[3] > 250) return color;
    }
    return rgba(getComputedStyle(document.body).backgroundColor);
  }

  function ratio(...colors) {
    const [dark, light] = colors.map(luminance).sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  }

  const contrast = (node) => ratio(rgba(getComputedStyle(node).color), background(node));

  function isShown(node) {
    const style = getComputedStyle(node);
    return node.offsetParent && style.visibility === "visible" && Number(style.opacity) >= 0.1;
  }

  // Visible text whose contrast is below 4.5, or below 3 where it is large (WCAG AA).
  function faint() {
    const found = new Set();
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const [text, node] = [walk.currentNode.data.trim(), walk.currentNode.parentElement];
      if (!text || !isShown(node) || node.closest("svg, script, style, [disabled], .lab-plot")) continue;
      const style = getComputedStyle(node);
      const size = parseFloat(style.fontSize);
      const large = size >= 24 || (size >= 18.6 && Number(style.fontWeight) >= 700);
      const level = contrast(node);
      if (level < (large ? 3 : 4.5)) found.add(`${level.toFixed(2)} ${text.slice(0, 40)} <${node.tagName} ${node.className}>`);
    }
    return [...found];
  }

  // Boxes and circles that a style draws with an edge whose contrast to what is around them is below 3; axe
  // does not look at these.
  function faintControls() {
    const controls = [...document.querySelectorAll(".block :is(input[type=radio], input[type=checkbox]):not(:checked)")];
    const isDrawn = (e) => getComputedStyle(e).appearance === "none";
    return controls.filter((e) => isShown(e) && isDrawn(e) && ratio(rgba(getComputedStyle(e).borderColor), background(e.parentElement)) < 3)
      .map((e) => e.outerHTML.slice(0, 160));
  }

  window.checks = { faint, faintControls };
})();
