"""Credits for Stars: from /buy to the receipt, and back."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from telegram import SuccessfulPayment

from accounts import ledger
from accounts.ledger_check import audit
from accounts.models import AuditEvent, CreditTransaction, User
from accounts.staff.actor import Refused
from telegram_bot import linking, payments, refunds
from telegram_bot.models import CreditPack, StarInvoice, StarPayment, TelegramAccount, TelegramUpdate
from telegram_bot.users import open_account
from tests.bot.bot_process import GROUP, Bot, inbox_is_empty, labels, people, user_of
from tests.bot_api_server import Message
from tests.processes import wait_for


@pytest.fixture(autouse=True)
def _our_bot(settings: Any, bot: Bot) -> Iterator[None]:
    """Nothing about money may end in an update that could not be handled."""
    settings.TELEGRAM_BOT_TOKEN = bot.telegram.token
    yield
    wait_for(inbox_is_empty, message=bot.log)
    assert not TelegramUpdate.objects.filter(state=TelegramUpdate.State.FAILED).exists(), bot.log


@pytest.fixture
def pack(db: None) -> CreditPack:
    CreditPack.objects.all().delete()
    return CreditPack.objects.create(name="Starter", credits=250, stars=100, for_sale=True)


def balance(telegram_id: int) -> int:
    return user_of(telegram_id).credit_account.balance


def ask(bot: Bot, text: str, sender: int, **facts: Any) -> Message:
    before = len(bot.telegram.shown(sender))
    bot.telegram.say(text, sender=sender, **facts)
    return bot.next_message(sender, after=before)


def invoice_for(bot: Bot, ada: int) -> dict[str, Any]:
    """Choose the first pack."""
    offers = ask(bot, "/buy", ada)
    before = len(bot.telegram.shown(ada))
    bot.telegram.press(offers, labels(offers)[0], sender=ada)
    shown = bot.next_message(ada, after=before).invoice
    assert shown is not None
    return shown


def bought(bot: Bot, ada: int, *, times: int = 1) -> StarPayment:
    shown = invoice_for(bot, ada)
    assert bot.telegram.check_out(shown["payload"], 100, payer=ada).ok
    charge = bot.telegram.charge(shown["payload"], 100, payer=ada, times=times)
    payment = wait_for(
        lambda: StarPayment.objects.filter(charge_id=charge.charge_id).first(), message=bot.log
    )
    wait_for(inbox_is_empty, message=bot.log)
    return payment


# --- Buying ---------------------------------------------------------------------------------------------------------


def test_from_buy_to_the_receipt(bot, ada, pack):
    CreditPack.objects.create(name="Old", credits=1, stars=1, for_sale=False)
    offers = ask(bot, "/buy", ada)
    assert labels(offers) == ["Starter: 250 credits · ⭐ 100"]
    shown = invoice_for(bot, ada)
    assert (shown["title"], shown["amount"], shown["start_parameter"]) == ("Starter", 100, "buy_here")
    checkout = bot.telegram.check_out(shown["payload"], 100, payer=ada)
    assert checkout.ok
    charge = bot.telegram.charge(shown["payload"], 100, payer=ada)
    thanks = wait_for(lambda: [m for m in bot.telegram.shown(ada) if "Thank you" in m.text], message=bot.log)[
        0
    ]
    assert thanks.text == (
        f"✅ Thank you! 250 credits for 100 Stars.\n💰 Balance: 750 credits\nReceipt: {charge.charge_id}"
    )
    entry = CreditTransaction.objects.get(kind="purchase")
    assert (entry.posted_delta, entry.external_id, entry.reason) == (
        250, charge.charge_id, "Bought with Telegram Stars: 100",
    )  # fmt: skip
    help_text = ask(bot, "/paysupport", ada).text
    assert charge.charge_id in help_text
    assert "⭐ 100 · 250 credits · paid" in help_text
    browser = Client()
    browser.force_login(user_of(ada))
    assert "Bought with Telegram Stars: 100" in browser.get("/credits/").content.decode()
    assert audit().discrepancies == []


def test_nothing_is_for_sale_until_staff_say_so_by_a_tick_in_the_list(bot, ada, staff):
    assert (
        "not for sale here at the moment. For more, ask the operator of this bot"
        in ask(bot, "/buy", ada).text
    )
    assert "/buy" not in ask(bot, "/help", ada).text
    assert labels(ask(bot, "/balance", ada)) == []
    admin, page = Client(), "/admin/telegram_bot/creditpack/"
    admin.force_login(staff)
    rows = admin.get(page).context["cl"].formset
    filled = {field.html_name: field.value() for row in rows for field in row if field.value() is not False}
    counted = {"form-TOTAL_FORMS": len(rows), "form-INITIAL_FORMS": len(rows), "_save": "Save"}
    answer = admin.post(page, filled | counted | {"form-0-stars": 99, "form-0-for_sale": "on"}, follow=True)
    assert "was changed successfully" in answer.content.decode()
    assert AuditEvent.objects.get().actor == staff
    assert labels(ask(bot, "/buy", ada)) == ["Starter: 250 credits · ⭐ 99"]
    assert "/buy - Get credits" in ask(bot, "/help", ada).text


def test_what_speaks_of_credits_leads_to_the_offers(bot, ada, pack):
    balance = ask(bot, "/balance", ada)
    assert labels(balance) == ["⭐ Buy credits"]
    press = bot.telegram.press(balance, "Buy credits", sender=ada)
    assert labels(bot.next_message(ada, after=1)) == ["Starter: 250 credits · ⭐ 100"]
    assert press.words == ""
    ledger.adjust(user=user_of(ada), amount=-470, reason="Spent", actor=user_of(ada))
    refusal = ask(bot, "/video a red fox", ada)
    assert refusal.text.endswith("Your balance: 30 credits")
    assert labels(refusal) == ["⭐ Buy credits"]
    CreditPack.objects.update(for_sale=False)
    bot.telegram.press(refusal, "Buy credits", sender=ada)
    assert "not for sale" in bot.next_message(ada, after=3).text
    assert labels(ask(bot, "/video a red fox", ada)) == []


def test_in_a_group_it_leads_to_the_chat_where_they_are_bought(bot, ada, pack):
    bot.telegram.say("/buy@videos_test_bot", sender=ada, chat=GROUP)
    answer = bot.next_message(GROUP)
    assert "in private" in answer.text
    [[button]] = answer.buttons
    link = "https://t.me/videos_test_bot?start="
    assert button["url"].startswith(link)
    offers = ask(bot, "/start " + button["url"].removeprefix(link), ada)
    assert labels(offers) == ["Starter: 250 credits · ⭐ 100"]


def test_a_charge_that_is_told_of_many_times_is_credited_once(bot, ada, pack):
    payment = bought(bot, ada, times=3)
    assert balance(ada) == 750
    assert CreditTransaction.objects.filter(kind="purchase").get() == payment.purchase


def test_an_invoice_that_is_paid_twice_is_credited_twice(bot, ada, pack):
    shown = invoice_for(bot, ada)
    for _ in range(2):
        bot.telegram.charge(shown["payload"], 100, payer=ada)
    wait_for(lambda: StarPayment.objects.count() == 2, message=bot.log)
    wait_for(inbox_is_empty)
    assert balance(ada) == 1000


def test_a_charge_that_two_processes_are_told_of_at_once_is_credited_once(ada, pack):
    account = open_account(telegram_id=ada)
    invoice = payments.offer(account=account, pack_id=pack.pk, asked_by="once")
    charge = SuccessfulPayment("XTR", 100, str(invoice.pk), "charge-1", "")
    found: list[int] = []

    def tell() -> None:
        found.append(payments.credit(bot_id=1, telegram_id=ada, charge=charge).pk)
        connection.close()

    threads = [threading.Thread(target=tell) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1
    assert balance(ada) == 750


def test_what_was_paid_for_nothing_known_is_kept_without_credits_and_can_go_back(bot, ada, staff):
    ask(bot, "/start", ada)
    charge = bot.telegram.charge("forged", 7, payer=ada)
    payment = wait_for(lambda: StarPayment.objects.first(), message=bot.log)
    wait_for(lambda: "We look into it" in bot.telegram.shown(ada)[-1].text)
    assert (payment.state, payment.purchase, balance(ada)) == ("unknown", None, 500)
    refunds.begin(payment=payment, reason="Nothing was bought", actor=staff)
    wait_for(lambda: bot.telegram.till.charges[charge.charge_id].refunded, message=bot.log)
    wait_for(lambda: StarPayment.objects.get().state == "refunded")
    assert balance(ada) == 500
    assert audit().discrepancies == []


def test_a_payment_credits_also_who_was_banned_meanwhile_and_who_was_joined_with_the_web(
    bot, ada, pack, make_user
):
    shown, web = invoice_for(bot, ada), make_user("web_ada")
    account = TelegramAccount.objects.get(telegram_id=ada)
    token = linking.begin_on_web(user=web)
    linking.confirm(linking.answer_in_telegram(token=token, account=account), by=web)
    User.objects.filter(pk=web.pk).update(is_active=False)
    assert not bot.telegram.check_out(shown["payload"], 100, payer=ada).ok
    bot.telegram.charge(shown["payload"], 100, payer=ada)
    wait_for(lambda: StarPayment.objects.filter(user=web).exists(), message=bot.log)
    assert balance(ada) == 750


# --- The checkout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"for_sale": False}, "This offer has ended"),
        ({"stars": 120}, "The price has changed"),
        ({"credits": 200}, "The price has changed"),
    ],
)
def test_an_invoice_is_refused_when_the_pack_has_changed(bot, ada, pack, change, words):
    shown = invoice_for(bot, ada)
    CreditPack.objects.filter(pk=pack.pk).update(**change)
    checkout = bot.telegram.check_out(shown["payload"], 100, payer=ada)
    assert (checkout.ok, words in checkout.words) == (False, True)


def test_a_checkout_that_fits_no_invoice_is_refused(bot, ada, pack):
    shown, eve = invoice_for(bot, ada), next(people)
    for payload, amount, payer, currency in (
        (shown["payload"], 1, ada, "XTR"),
        (shown["payload"], 100, ada, "USD"),
        (shown["payload"], 100, eve, "XTR"),
        ("00000000-0000-0000-0000-000000000000", 100, ada, "XTR"),
        ("' OR 1=1 --", 100, ada, "XTR"),
    ):
        assert bot.telegram.check_out(payload, amount, payer=payer, currency=currency).ok is False
    User.objects.filter(pk=user_of(ada).pk).update(is_active=False)
    assert bot.telegram.check_out(shown["payload"], 100, payer=ada).ok is False
    StarInvoice.objects.all().delete()
    CreditPack.objects.all().delete()
    assert bot.telegram.check_out(shown["payload"], 100, payer=ada).ok is False


def test_a_checkout_waits_for_no_message_and_no_flood_wait(own_bot, ada, pack):
    bot = own_bot
    bot.start()
    shown, eve = invoice_for(bot, ada), next(people)
    bot.telegram.fail("sendMessage", 429, "Too Many Requests: retry after 12", retry_after=12)
    bot.telegram.hold("sendMessage")
    bot.telegram.say("/help", sender=eve)  # has to wait for longer than a checkout may take
    wait_for(lambda: len(bot.telegram.called("sendMessage")) > 1, message=bot.log)
    for _ in range(8):
        bot.telegram.say("/help", sender=ada)  # more than the chat's pace lets through
    assert bot.telegram.check_out(shown["payload"], 100, payer=ada).ok
    bot.kill()
    bot.telegram.release()
    TelegramUpdate.objects.all().delete()  # no one is left to answer the rest


def test_a_pack_that_ended_is_refused_at_the_button(bot, ada, pack):
    offers = ask(bot, "/buy", ada)
    CreditPack.objects.update(for_sale=False)
    press = bot.telegram.press(offers, "Starter", sender=ada)
    wait_for(lambda: press.words is not None, message=bot.log)
    assert "This offer has ended" in str(press.words)
    for data in ("buy:999999", "buy:x", "buy:-1", "buy:" + "9" * 40):
        forged = bot.telegram.press_data(offers, data, sender=ada)
        wait_for(lambda forged=forged: forged.words is not None, message=bot.log)
        assert "This offer has ended" in str(forged.words)
    assert not StarInvoice.objects.exists()


def test_terms_and_help_are_there(bot, ada):
    assert "Credits pay for videos here" in ask(bot, "/terms", ada).text
    assert "You have not paid for anything yet" in ask(bot, "/paysupport", ada).text


# --- Refunds --------------------------------------------------------------------------------------------------------


def test_staff_give_stars_back_and_the_credits_go_first(bot, ada, pack, staff):
    payment = bought(bot, ada)
    admin = Client()
    admin.force_login(staff)
    page = f"/admin/telegram_bot/starpayment/{payment.pk}/refund/"
    form = admin.get(page).context["form"]
    bot.telegram.hold("refundStarPayment", undone=True)
    answers = [
        admin.post(page, {"reason": "Asked for", "once": form["once"].value()}).status_code for _ in range(2)
    ]
    assert answers == [302, 302]  # a double click is one refund
    assert balance(ada) == 500
    assert StarPayment.objects.get().state == "refunding"
    bot.telegram.release()
    wait_for(lambda: StarPayment.objects.get().state == "refunded", message=bot.log)
    told = wait_for(lambda: [m for m in bot.telegram.shown(ada) if "given back" in m.text], message=bot.log)
    assert "100 Stars were given back to you. 250 credits were taken back." in told[0].text
    assert len(bot.telegram.called("refundStarPayment")) == 1
    assert CreditTransaction.objects.filter(kind="purchase_refund").count() == 1
    assert "was refunded before" in admin.get(page, follow=True).content.decode()
    wait_for(inbox_is_empty)  # Telegram tells of the refund, too
    assert balance(ada) == 500
    assert audit().discrepancies == []


def test_a_definite_refusal_gives_the_credits_back_and_staff_may_try_again(bot, ada, pack, staff):
    payment = bought(bot, ada)
    bot.telegram.fail("refundStarPayment", 400, "Bad Request: BOT_BALANCE_TOO_LOW")
    refunds.begin(payment=payment, reason="Asked for", actor=staff)
    wait_for(
        lambda: StarPayment.objects.filter(state="paid", error__icontains="TOO_LOW").exists(), message=bot.log
    )
    assert balance(ada) == 750
    refunds.begin(payment=payment, reason="Asked for again", actor=staff)
    wait_for(lambda: StarPayment.objects.get().state == "refunded", message=bot.log)
    assert balance(ada) == 500
    assert audit().discrepancies == []


def test_an_answer_that_is_no_verdict_is_asked_for_again_and_done_before_is_done(bot, ada, pack, staff):
    payment = bought(bot, ada)
    bot.telegram.drop("refundStarPayment", after_doing=True)
    refunds.begin(payment=payment, reason="Asked for", actor=staff)
    wait_for(lambda: len(bot.telegram.called("refundStarPayment")) >= 1, message=bot.log)
    wait_for(lambda: StarPayment.objects.get().state == "refunded", message=bot.log)
    assert balance(ada) == 500
    assert CreditTransaction.objects.filter(kind="adjust").count() == 0
    assert audit().discrepancies == []


def test_a_refund_survives_a_server_error_and_a_kill(own_bot, ada, pack, staff, settings):
    own_bot.start()
    settings.TELEGRAM_BOT_TOKEN = own_bot.telegram.token
    payment = bought(own_bot, ada)
    own_bot.telegram.fail("refundStarPayment", 502, "Bad Gateway")
    refunds.begin(payment=payment, reason="Asked for", actor=staff)
    wait_for(lambda: StarPayment.objects.get().attempts == 1, message=own_bot.log)
    assert balance(ada) == 500
    own_bot.kill()
    own_bot.start()
    wait_for(lambda: StarPayment.objects.get().state == "refunded", message=own_bot.log)
    assert own_bot.telegram.till.charges[payment.charge_id].refunded
    # Telegram tells of it, too.
    wait_for(lambda: not own_bot.telegram.unacknowledged() and inbox_is_empty(), message=own_bot.log)


def test_nothing_is_refunded_above_the_free_balance(bot, ada, pack, staff):
    payment = bought(bot, ada)
    ledger.adjust(user=user_of(ada), amount=-600, reason="Spent", actor=staff)
    assert refunds.why_not(payment) == "250 credits were bought, and only 150 are free: the rest was spent."
    with pytest.raises(Refused):
        refunds.begin(payment=payment, reason="Asked for", actor=staff)
    assert (balance(ada), StarPayment.objects.get().state) == (150, "paid")
    admin = Client()
    admin.force_login(staff)
    page = f"/admin/telegram_bot/starpayment/{payment.pk}/refund/"
    assert "only 150 are free" in admin.get(page, follow=True).content.decode()
    assert not bot.telegram.called("refundStarPayment")


def test_a_refund_after_joining_is_taken_from_where_the_credits_are(bot, ada, pack, staff, make_user):
    payment, web = bought(bot, ada), make_user("web_ada")
    account = TelegramAccount.objects.get(telegram_id=ada)
    token = linking.begin_on_web(user=web)
    linking.confirm(linking.answer_in_telegram(token=token, account=account), by=web)
    assert balance(ada) == 750
    refunds.begin(payment=payment, reason="Asked for", actor=staff)
    assert balance(ada) == 500
    wait_for(lambda: StarPayment.objects.get().state == "refunded", message=bot.log)
    assert audit().discrepancies == []


def test_a_refund_by_another_hand_takes_the_credits_too(bot, ada, pack):
    payment = bought(bot, ada)
    bot.telegram.answer(
        "refundStarPayment", {"user_id": ada, "telegram_payment_charge_id": payment.charge_id}
    )
    wait_for(lambda: StarPayment.objects.get().state == "refunded", message=bot.log)
    assert balance(ada) == 500
    assert audit().discrepancies == []


def test_only_who_may_refunds(bot, ada, pack, make_user):
    payment = bought(bot, ada)
    helper = Client()
    helper.force_login(make_user("helper", is_staff=True))
    page = f"/admin/telegram_bot/starpayment/{payment.pk}/refund/"
    assert helper.post(page, {"reason": "For a friend"}).status_code in (302, 403)
    assert StarPayment.objects.get().state == "paid"


# --- The audit ------------------------------------------------------------------------------------------------------


def test_the_audit_finds_what_does_not_fit(ada, pack):
    account = open_account(telegram_id=ada)
    invoice = payments.offer(account=account, pack_id=pack.pk, asked_by="once")
    charge = SuccessfulPayment("XTR", 100, str(invoice.pk), "charge-1", "")
    payments.credit(bot_id=1, telegram_id=ada, charge=charge)
    assert audit().discrepancies == []
    StarPayment.objects.update(stars=7)
    assert len(audit().discrepancies) == 1
    StarPayment.objects.update(stars=100)
    ledger.purchase(user=account.user, amount=9, external_id="nobody paid this", reason="Invented")
    ledger.purchase_refund(purchase=StarPayment.objects.get().purchase, reason="Behind the back")
    assert len(audit().discrepancies) == 2


@pytest.mark.parametrize("left", [100, 0])
def test_what_telegram_refunds_by_itself_is_no_longer_there_to_spend(
    bot: Bot, ada: int, pack: CreditPack, left: int
):
    payment, user = bought(bot, ada), user_of(ada)
    spent = user.credit_account.balance - left
    ledger.adjust(user=user, amount=-spent, reason="Spent on videos", actor=None)
    refund = {
        "currency": "XTR",
        "total_amount": 100,
        "invoice_payload": "x",
        "telegram_payment_charge_id": payment.charge_id,
    }
    person = {"id": ada, "is_bot": False, "first_name": "Ada"}
    for _ in range(2):
        bot.telegram.push_message(
            {"chat": {"id": ada, "type": "private"}, "from": person, "refunded_payment": refund}
        )
    wait_for(lambda: TelegramUpdate.objects.filter(raw__contains="refunded_payment").count() == 2)
    wait_for(inbox_is_empty, message=bot.log)
    payment.refresh_from_db()
    assert balance(ada) == 0
    assert payment.error == f"Refunded by Telegram: 250 credits; {left} were left and are taken back."
    assert audit().discrepancies == []
