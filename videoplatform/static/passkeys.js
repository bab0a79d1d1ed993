// Errors of allauth's script for passkeys, as messages that say what to do.
document.addEventListener("allauth.error", (event) => {
  event.preventDefault();
  const { exception } = event.detail;
  const text =
    exception.name === "NotAllowedError"
      ? gettext("That was canceled, or it took too long. You can try again.")
      : exception.name === "InvalidStateError"
        ? gettext("This device or key is registered already.")
        : gettext("Your browser could not use a passkey here. Please sign in another way.");
  window.site.showError(text);
});
