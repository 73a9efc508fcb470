// What the theme's pages lack for those who read by ear or by keyboard.
document.addEventListener("DOMContentLoaded", () => {
  for (const toggle of document.querySelectorAll("nav summary"))
    toggle.setAttribute("aria-label", `Pages of ${toggle.closest("li")?.querySelector("a")?.textContent.trim()}`);
  for (const head of document.querySelectorAll(".bd-article th"))
    if (!head.textContent.trim()) {  // a corner without a word heads nothing
      const cell = document.createElement("td");
      cell.className = head.className;
      head.replaceWith(cell);
    }
  const side = document.querySelector(".bd-sidebar-primary");
  side?.setAttribute("role", "complementary");
  side?.setAttribute("aria-label", "Course");
  // a table or a block that is wider than the page is scrolled with the keyboard
  for (const box of document.querySelectorAll(".bd-article table, .bd-article pre, .bd-article .cell_output, .drawing, .bd-article p:has(> img)"))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
});
