// What allauth's script for passkeys reports, in words a person can do something with.
document.addEventListener("allauth.error", (event) => {
  event.preventDefault();
  const { exception } = event.detail;
  const words =
    exception.name === "NotAllowedError"
      ? gettext("That was canceled, or it took too long. You can try again.")
      : exception.name === "InvalidStateError"
        ? gettext("This device or key is registered already.")
        : gettext("Your browser could not use a passkey here. Please sign in another way.");
  window.site.tell(words);
});
