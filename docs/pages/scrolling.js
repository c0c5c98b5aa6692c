// Boxes that scroll by themselves, such as wide tables, can be reached with the keyboard.

function markScrolling() {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap, .equation")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

new MutationObserver(markScrolling).observe(document.body, { childList: true, subtree: true });
addEventListener("resize", markScrolling);
markScrolling();
